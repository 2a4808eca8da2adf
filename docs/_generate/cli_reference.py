"""The page of the command line, from the verbs themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
from tables import code, plain, table

from pipeline.cli.app import command

PROGRAM = "python -m pipeline"
HEAD = f"""# Command line

Every verb is `{PROGRAM} VERB`. `--help` after a verb prints the same text. This page is made from the code.

Exit codes: 0 fine, 1 some runs failed, 2 bad config, data or command line, 3 cannot run here, 130 interrupted. With `--json`, standard
output holds one JSON object and nothing else; text for people goes to standard error. An error is `{{"error": …, "where": …, "hint": …}}`.
"""


def cli_page() -> str:
    """Every verb with its arguments and options."""
    context = command.make_context(PROGRAM, [], resilient_parsing=True)
    return "\n".join([HEAD, *_sections(command, context, ())])


def _sections(command: Any, context: Any, words: tuple[str, ...]) -> Iterator[str]:
    for name, child in getattr(command, "commands", {}).items():
        inner = typer.Context(child, parent=context, info_name=name)
        path = (*words, name)
        if hasattr(child, "commands"):
            yield from _sections(child, inner, path)
        else:
            yield _section(child, inner, path)


def _section(command: Any, context: Any, path: tuple[str, ...]) -> str:
    parameters = [one for one in command.params if one.name != "help"]
    usage = " ".join([PROGRAM, *path, *(_typed(one, context) for one in parameters if _is_argument(one)), "[OPTIONS]"])
    text = "\n\n".join(plain(part) for part in command.help.split("\n\n"))
    rows = [[code(_typed(one, context)), plain(one.help or ""), _default(one)] for one in parameters]
    return (
        f"## {' '.join(path)}\n\n```text\n{usage}\n```\n\n{text}\n\n{table(['', 'meaning', 'default, limits'], rows)}"
    )


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _typed(parameter: Any, context: Any) -> str:
    """Name of an argument, or an option with its value."""
    shown = parameter.get_help_record(context)[0]
    if _is_argument(parameter):
        name = parameter.metavar or parameter.name.upper()
        return name if parameter.required else f"[{name}]"
    return re.sub(r"<(?:list\[)?([^<>\]]+?)(?: range)?\]?>", lambda found: _kind(found.group(1)), shown)


def _kind(name: str) -> str:
    """Choices unchanged, types in capitals."""
    return name if "|" in name else name.upper()


def _default(parameter: Any) -> str:
    parts = []
    if parameter.default not in (None, False):
        parts.append(code(str(parameter.default)))
    if parameter.envvar:
        parts.append(f"{code(f'${parameter.envvar}')} where it is set")
    parts += [f"at least {parameter.min}"] * (parameter.min is not None)
    parts += [f"at most {parameter.max}"] * (parameter.max is not None)
    if parameter.required:
        parts.append("must be given")
    return "; ".join(parts)
