"""Commands that texts tell a person to type: found, and read as the command line reads them, without running anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

from pipeline.ablation.config import load_ablation
from pipeline.cli import app
from pipeline.compose import load_benchmark_config, load_experiment
from pipeline.jobs.task import read_task
from pipeline.search.config import load_search

VERB = "python -m pipeline "
CONFIGS: Mapping[str, Callable[[str], object]] = {
    "train": load_experiment,
    "search": load_search,
    "ablate": load_ablation,
    "plan": load_ablation,
    "report": load_ablation,
    "verify": load_benchmark_config,
}
"""Verbs whose first argument names a config."""


def shell_lines(markdown: str) -> Iterator[str]:
    """The lines of a text's blocks of commands, those that go on joined."""
    for block in re.findall(r"```sh\n(.*?)```", markdown, re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def pipeline_part(line: str, starts: tuple[str, ...] = (VERB,)) -> Iterator[str]:
    """What follows the program in a line, up to the shell's next word."""
    for start in starts:
        _, there, rest = line.partition(start)
        if there:
            yield re.split(r"\s(?:&&|\||>|#)(?:\s|$)|`", rest)[0].strip()


def read(arguments: list[str]) -> tuple[str, typer.Context]:
    """A verb and its parameters, as the command line takes them; nothing runs."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("pipeline", [], resilient_parsing=True)
    name = ""
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    return name, command.make_context(name, arguments, parent=context)


def check(command: str) -> None:
    """Demands that the pipeline takes a command, and that the config which it names is there and right.

    Args:
        command: what follows `python -m pipeline`.
    """
    verb, context = read(shlex.split(command))
    given = context.params
    if verb == "submit":
        read_task(context, given["verb"], given["arguments"])
    elif verb in CONFIGS:
        CONFIGS[verb](next(given[name] for name in ("experiment", "name", "benchmark") if name in given))
