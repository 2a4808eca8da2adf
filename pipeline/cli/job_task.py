"""Command of a job: a verb that can run on a cluster and its arguments, checked before anything is sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from mgmrn.errors import UserError
from pipeline.cli.options import check_outlasts_job, parse_seeds
from pipeline.jobs.submit import Task
from pipeline.redaction import redact

NOT_OF_THE_JOB = frozenset({"address", "as_json"})
"""Parameters that do not change what is run."""
OF_THE_CONFIG = frozenset({"experiment", "overrides", "name", "benchmarks"})
"""Parameters that the identity replaces by the resolved config."""
PLACES = frozenset({"storage", "data_root", "tracking_uri", "study_storage"})


@dataclass(frozen=True)
class Contents:
    """Resolved config of a verb's arguments."""

    name: str
    config: Mapping[str, Any]
    """Resolved values: two spellings of one config are the same job."""
    files: tuple[str, ...]
    """Config files of the user, as they were named."""


def read_task(parent: typer.Context, verb: str, arguments: Sequence[str]) -> Task:
    """Parse a verb's arguments by the verb's own options, and load its configs.

    An option whose environment variable is set here is added to the job's arguments.

    Args:
        parent: context of `submit`.
        verb: the verb to run.
        arguments: arguments of that verb.

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
    """Check the places that are decided here; a default that the head's environment may replace is checked by the driver."""
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
    from pipeline.train.placement import parse_workers

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
