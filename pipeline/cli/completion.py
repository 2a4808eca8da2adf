"""Completion in a shell. `python -m pipeline` is no program of its own, so the script defines one: a function `mgmrn`.

Typer answers what a shell asks through an environment variable; the scripts here ask, in the words of Typer's own protocol.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from typing import Literal

VARIABLE = "_MGMRN_COMPLETE"
"""Set while a shell asks, to what it asks for."""

Shell = Literal["bash", "zsh"]

_BASH = """\
mgmrn() {{ {program} "$@"; }}
_mgmrn_completion() {{
    local IFS=$'\\n'
    COMPREPLY=($(env COMP_WORDS="${{COMP_WORDS[*]}}" COMP_CWORD="$COMP_CWORD" {variable}=complete_bash {program} 2> /dev/null))
}}
complete -o default -F _mgmrn_completion mgmrn
"""
_ZSH = """\
mgmrn() {{ {program} "$@"; }}
_mgmrn_completion() {{
    eval "$(env _TYPER_COMPLETE_ARGS="${{words[1,$CURRENT]}}" {variable}=complete_zsh {program} 2> /dev/null)"
}}
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}
compdef _mgmrn_completion mgmrn
"""
_SCRIPTS: dict[Shell, str] = {"bash": _BASH, "zsh": _ZSH}


def script(shell: Shell) -> str:
    """What a shell has to run to know `mgmrn` and to complete it."""
    program = f"{shlex.quote(sys.executable)} -m pipeline"
    return _SCRIPTS[shell].format(program=program, variable=VARIABLE)


def prepare() -> None:
    """Where a shell is asking, lets Typer know the shells; it does so by itself only for programs of their own."""
    if os.environ.get(VARIABLE):
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()


def shipped(group: str) -> Callable[[str], list[str]]:
    """What completes the names of a group's configs (`experiment`, `search` …); paths of files are completed by the shell."""

    def complete(incomplete: str) -> list[str]:
        # Loads what checks configs.
        from pipeline.config.files import config_names

        return [name for name in config_names(group) if name.startswith(incomplete)]

    return complete
