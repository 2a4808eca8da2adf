"""Completion in bash and zsh: a script defines `mgmrn` and asks `python -m pipeline` for candidates by Typer's protocol."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

VARIABLE = "_MGMRN_COMPLETE"

Shell = Literal["bash", "zsh"]


def script(shell: Shell) -> str:
    """Script that defines `mgmrn` and its completion in a shell."""
    text = Path(__file__).with_suffix(f".{shell}").read_text(encoding="utf-8")
    return text.replace("@PROGRAM@", f"{shlex.quote(sys.executable)} -m pipeline").replace("@VARIABLE@", VARIABLE)


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
