"""The verbs that measure: `bench eval`, `bench cache`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from pipeline import places
from pipeline.console import Console
from pipeline.options import APP_OPTIONS, DataRoot, Experiment, Json, Overrides

if TYPE_CHECKING:
    from pipeline.bench.report import BenchReport

bench_app = typer.Typer(help="Measure parts of the code.", **APP_OPTIONS)


@bench_app.command("eval")
def bench_eval(as_json: Json = False) -> None:
    """Time the exact seen–unseen curve against a sweep over γ."""
    from pipeline.bench.eval import run

    _show_bench(run(), Console(as_json))


@bench_app.command("cache")
def bench_cache(
    experiment: Experiment,
    overrides: Overrides = None,
    data_root: DataRoot = places.DATA_ROOT,
    as_json: Json = False,
) -> None:
    """Time an epoch on cached maps against the same epoch from pictures."""
    from pipeline.bench.cache import run
    from pipeline.compose import load_experiment

    config = load_experiment(experiment, overrides or []).config
    _show_bench(run(config, data_root, places.CACHE.resolve()), Console(as_json))


def _show_bench(report: BenchReport, console: Console) -> None:
    rows = [[one.name, f"{one.median:.3g}", f"{one.min:.3g}", f"{one.max:.3g}", one.unit] for one in report.results]
    console.table(["what", "median", "min", "max", "unit"], rows)
    for name, ratio in report.ratios.items():
        console.line(f"{name}: {ratio:.3g}×")
    console.result(report.to_json())
