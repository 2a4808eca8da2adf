"""Commands in texts for people: found, and parsed by the command line without being run."""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipeline.ablation.config import load_ablation
from pipeline.cli.app import command as pipeline
from pipeline.cli.job_verbs import read_task
from pipeline.config.compose import load_benchmark_config, load_experiment
from pipeline.search.config import load_search

VERB = "python -m pipeline "
CONFIGS: Mapping[str, Callable[[str], object]] = {
    "search": load_search,
    "ablate": load_ablation,
    "plan": load_ablation,
    "report": load_ablation,
    "verify": load_benchmark_config,
}
"""Verbs whose first argument names a config, beside those that take `--set`."""


def verbs(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every verb, those of groups with the group's name, and its command."""
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from verbs(child, (*words, name))
        else:
            yield " ".join((*words, name)), child


def shell_lines(markdown: str) -> Iterator[str]:
    """Lines of a text's shell blocks, continued lines joined."""
    for block in re.findall(r"```sh\n(.*?)```", markdown, re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()


def commands_in(markdown: str) -> Iterator[str]:
    """What follows `python -m pipeline` in a text's shell blocks, and between back ticks in its sentences."""
    for line in shell_lines(markdown):
        yield from pipeline_part(line)
    prose = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    for quoted in re.findall(rf"`{VERB}([^`]+)`", prose):
        yield quoted.replace("\n", " ")


def pipeline_part(line: str, starts: tuple[str, ...] = (VERB,)) -> Iterator[str]:
    """What follows the program in a line, up to the shell's next word."""
    for start in starts:
        _, there, rest = line.partition(start)
        if there:
            yield re.split(r"\s(?:&&|\||>|#)(?:\s|$)|[`)]", rest)[0].strip()


def check(command: str) -> None:
    """Check that the pipeline accepts a command, and that the config which it names exists and is right.

    Args:
        command: what follows `python -m pipeline`; configs and values in capitals are placeholders for the reader's own.
    """
    words, verb, found = shlex.split(command), "", pipeline
    while hasattr(found, "commands"):
        verb, *words = words
        found = found.commands[verb]
    context = found.make_context(verb, words, parent=pipeline.make_context("pipeline", [], resilient_parsing=True))
    given = context.params
    config = next((given[name] for name in ("experiment", "name", "benchmark") if given.get(name)), "")
    if verb == "submit":
        read_task(context, given["verb"], given["arguments"])
    elif "overrides" in given:
        load_experiment(config, [one for one in given["overrides"] or [] if not one.rpartition("=")[2].isupper()])
    elif verb in CONFIGS and not config.isupper():
        CONFIGS[verb](config)
