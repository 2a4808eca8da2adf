"""What a job is to do: a verb that can run on a cluster and its arguments, checked here before anything is sent."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from mgmrn.errors import UserError
from pipeline.cli.job_folder import check_outlasts_job
from pipeline.cli.options import parse_seeds
from pipeline.redaction import redact

NOT_OF_THE_JOB = frozenset({"address", "as_json"})
"""Parameters that decide nothing of what is run."""
OF_THE_CONFIG = frozenset({"experiment", "overrides", "name", "benchmarks"})
"""Parameters of which the resolved config takes the place, however they were written."""
PLACES = frozenset({"storage", "data_root", "tracking_uri", "study_storage"})


@dataclass(frozen=True)
class Contents:
    """What the configs behind a verb's arguments come to."""

    name: str
    config: Mapping[str, Any]
    """Resolved: two spellings of one config are the same job."""
    files: tuple[str, ...]
    """Configs that are no shipped ones, as they were named."""


@dataclass(frozen=True)
class Task:
    """A command for the cluster."""

    verb: str
    name: str
    arguments: tuple[str, ...]
    """Of the verb, as the job gets them."""
    files: tuple[str, ...]
    """Config files that the job must find in its folder."""
    identity: str
    """sha256 of the resolved config and of all arguments that decide what is run, and where its results go."""

    @property
    def entrypoint(self) -> str:
        """The driver's command; everybody who may ask the job server reads it."""
        return shlex.join(["python", "-m", "pipeline", self.verb, *self.arguments])

    def submission_id(self, code: str) -> str:
        """Like `mgmrn-train-cub100-1f0c9a2e`: the same command with the same code has the same one.

        Args:
            code: digest of the files that are sent.
        """
        digest = hashlib.sha256(f"{self.identity} {code}".encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.name)[:40]
        return f"mgmrn-{self.verb}-{name}-{digest}"


def read_task(parent: typer.Context, verb: str, arguments: Sequence[str]) -> Task:
    """Reads a verb's arguments by the verb's own options, and its configs; what is wrong is said as the verb would say it.

    An option whose environment variable is set here goes with the job, written out.

    Args:
        parent: of the verb that submits.
        verb: the one to run.
        arguments: its own.

    Raises:
        UserError: a verb that cannot run on a cluster, a bad config, a place that would go with the job, or a secret among the arguments.
    """
    if verb not in _CONTENTS:
        raise UserError(f"'{verb}' does not run as a job", "VERB", f"submit one of {', '.join(_CONTENTS)}")
    root = parent.find_root()
    command = root.command.get_command(root, verb)  # type: ignore[attr-defined]
    context = command.make_context(verb, list(arguments), parent=root)
    if context.params["address"] is not None:
        hint = f"name the cluster's job server before the verb: submit --address http://HOST:8265 {verb} …"
        raise UserError(f"a job of {verb} runs on the cluster that it is sent to", "--address", hint)
    complete = (*arguments, *_from_environment(context))
    _check_places(context)
    _check_secrets(complete)
    contents = _CONTENTS[verb](context.params)
    others = {name: value for name, value in context.params.items() if name not in NOT_OF_THE_JOB | OF_THE_CONFIG}
    identity = json.dumps([verb, contents.name, contents.config, others], sort_keys=True, default=str)
    return Task(verb, contents.name, complete, contents.files, hashlib.sha256(identity.encode()).hexdigest())


def _from_environment(context: typer.Context) -> Iterator[str]:
    for parameter in context.command.params:
        if _source(context, parameter.name) == "ENVIRONMENT":
            yield from (parameter.opts[0], str(context.params[parameter.name or ""]))


def _check_places(context: typer.Context) -> None:
    """A default that the cluster's own environment may replace is left to the driver, which knows it."""
    for parameter in context.command.params:
        variable = parameter.envvar if isinstance(parameter.envvar, str) else None
        decided = _source(context, parameter.name) != "DEFAULT" or variable is None
        if parameter.name in PLACES and decided:
            check_outlasts_job(context.params[parameter.name], parameter.opts[0], variable)


def _source(context: typer.Context, name: str | None) -> str:
    source = context.get_parameter_source(name or "")
    return source.name if source else "DEFAULT"


def _check_secrets(arguments: Sequence[str]) -> None:
    for argument in arguments:
        if redact(argument) != argument:
            raise UserError(
                f"{redact(argument)} holds a secret, which everybody who may see the job could read",
                hint="set it in the environment of the cluster's head (MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD; MGMRN_STUDY_STORAGE), and leave it out here",
            )


def _train(params: Mapping[str, Any]) -> Contents:
    from pipeline.config.compose import load_experiment
    from pipeline.train.workers import parse_workers

    if params["seeds"] is not None:
        parse_seeds(params["seeds"])
    composed = load_experiment(params["experiment"], params["overrides"] or [])
    parse_workers(params["workers"]).check_shares(composed.config)
    return Contents(composed.name, composed.config.model_dump(mode="json"), _files(params["experiment"]))


def _search(params: Mapping[str, Any]) -> Contents:
    from pipeline.search.config import load_search
    from pipeline.search.space import Space

    file = load_search(params["name"])
    Space(file)
    config = file.config
    return Contents(file.name, config.model_dump(mode="json"), _files(params["name"], config.base, *config.benchmarks))


def _ablate(params: Mapping[str, Any]) -> Contents:
    from pipeline.ablation.config import load_ablation, with_benchmarks
    from pipeline.ablation.grid import make_grid

    file = load_ablation(params["name"])
    if params["benchmarks"] is not None:
        file = with_benchmarks(file, tuple(params["benchmarks"].split(",")))
    make_grid(file)
    config = file.config
    return Contents(file.name, config.model_dump(mode="json"), _files(params["name"], config.base, *config.benchmarks))


_CONTENTS: Mapping[str, Callable[[Mapping[str, Any]], Contents]] = {
    "train": _train,
    "search": _search,
    "ablate": _ablate,
}


def _files(*names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name.endswith((".yaml", ".yml")))
