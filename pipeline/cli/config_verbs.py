"""The verbs of `config`: `show`, `validate`, `diff`."""

from typing import Annotated

import typer

from mgmrn.errors import UserError
from pipeline.cli.options import APP_OPTIONS, Experiment, Json, Overrides
from pipeline.console import Console
from pipeline.errors import ExitCode, error_object

config_app = typer.Typer(help="Look at configs without running them.", **APP_OPTIONS)


@config_app.command()
def show(experiment: Experiment, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print the full config and the origin of every value."""
    from pipeline.config.compose import load_experiment
    from pipeline.config.compose import show as show_config

    composed = load_experiment(experiment, overrides or [])
    console = Console(as_json)
    if not as_json:
        console.line(show_config(composed).rstrip())
    config = composed.config.model_dump(mode="json")
    console.result({"name": composed.name, "config": config, "provenance": composed.provenance})


@config_app.command()
def validate(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Experiments or their files, search/NAME, ablation/NAME; by default, all shipped ones."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Check configs and report all errors of all of them."""
    from pipeline.config.files import config_names

    console = Console(as_json)
    errors = {}
    shipped = {"": "experiment", "search/": "search", "ablation/": "ablation"}
    for name in names or [f"{prefix}{name}" for prefix, group in shipped.items() for name in config_names(group)]:
        try:
            _load(name)
            console.line(f"{name}: fine")
        except UserError as error:
            errors[name] = error_object(error)
            console.line(f"{name}: {error}")
    console.result({"errors": errors})
    return ExitCode.BAD_INPUT if errors else ExitCode.FINE


def _load(name: str) -> None:
    from pipeline.ablation.config import load_ablation
    from pipeline.ablation.grid import make_grid
    from pipeline.config.compose import load_experiment
    from pipeline.search.config import load_search
    from pipeline.search.space import Space

    if name.startswith("search/"):
        Space(load_search(name.removeprefix("search/")))
    elif name.startswith("ablation/"):
        make_grid(load_ablation(name))
    else:
        load_experiment(name)


@config_app.command("diff")
def diff_configs(before: Experiment, after: Experiment, as_json: Json = False) -> None:
    """Print the values in which two experiments differ."""
    from pipeline.config.compose import diff, load_experiment
    from pipeline.config.yaml_tree import yaml_value

    changes = diff(load_experiment(before).config, load_experiment(after).config)
    console = Console(as_json)
    rows = [[path, yaml_value(one), yaml_value(other)] for path, (one, other) in changes.items()]
    console.table(["field", before, after], rows)
    shown = [{"path": path, "before": one, "after": other} for path, (one, other) in changes.items()]
    console.result({"changes": shown})
