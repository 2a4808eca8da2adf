"""Completion in bash and zsh: a script defines `mgmrn` and asks `python -m pipeline` for candidates by Typer's protocol."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from typing import Literal

VARIABLE = "_MGMRN_COMPLETE"
"""Environment variable that holds a shell's completion request."""

Shell = Literal["bash", "zsh"]

_SCRIPTS: dict[Shell, str] = {
    "bash": """\
mgmrn() {{ {program} "$@"; }}
_mgmrn_completion() {{
    local IFS=$'\\n'
    COMPREPLY=($(env COMP_WORDS="${{COMP_WORDS[*]}}" COMP_CWORD="$COMP_CWORD" {variable}=complete_bash {program} 2> /dev/null))
}}
complete -o default -F _mgmrn_completion mgmrn
""",
    "zsh": """\
mgmrn() {{ {program} "$@"; }}
_mgmrn_completion() {{
    eval "$(env _TYPER_COMPLETE_ARGS="${{words[1,$CURRENT]}}" {variable}=complete_zsh {program} 2> /dev/null)"
}}
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}
compdef _mgmrn_completion mgmrn
""",
}


def script(shell: Shell) -> str:
    """Script that defines `mgmrn` and its completion in a shell."""
    return _SCRIPTS[shell].format(program=f"{shlex.quote(sys.executable)} -m pipeline", variable=VARIABLE)


def prepare() -> None:
    """Register the shells with Typer if this is a completion request; Typer does so itself only for installed programs."""
    if os.environ.get(VARIABLE):
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()


def shipped(group: str) -> Callable[[str], list[str]]:
    """Completion of the names of a group's configs (`experiment`, `search` …); the shell completes paths of files."""

    def complete(incomplete: str) -> list[str]:
        # Loads pydantic and the config models.
        from pipeline.config.files import config_names

        return [name for name in config_names(group) if name.startswith(incomplete)]

    return complete
