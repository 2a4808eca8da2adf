"""Comparisons of what the tracking store holds, by the name of a grid or by run ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mgmrn.errors import UserError
from pipeline.ablation.launch import survey
from pipeline.ablation.request import AblationRequest
from pipeline.ablation.results import comparisons
from pipeline.analysis.comparison import Comparison, cells_of_runs, compare
from pipeline.analysis.runs import FIGURES, rows_of, runs_table
from pipeline.tracking.store import TrackingStore

if TYPE_CHECKING:
    import pandas as pd


def compare_grid(request: AblationRequest, metric: str | None) -> list[Comparison]:
    """Compares the variants of a grid by the runs that exist.

    Args:
        request: grid, data and tracking store.
        metric: key of `FIGURES`; None: all, the primary one first.

    Raises:
        UserError: for a bad grid or an unknown metric.
        TrackingError: when the tracking store cannot be reached.
    """
    _check_metric(metric)
    surveyed = survey(request)
    return comparisons(surveyed.grid, surveyed.plan(), metric)


def compare_runs(run_ids: Sequence[str], base: str | None, metric: str | None, tracking_uri: str) -> list[Comparison]:
    """Compares single runs, grouped by variant and benchmark.

    Args:
        run_ids: of finished runs on one split.
        base: variant to compare with; None: the first run's.
        metric: key of `FIGURES`; None: all.
        tracking_uri: address of the tracking store.

    Raises:
        UserError: for a run that is not a finished training run, runs of two splits, two runs of one config and seed,
            an unknown metric or base.
        TrackingError: when the store cannot be reached or does not know a run.
    """
    _check_metric(metric)
    store = TrackingStore.connect(tracking_uri)
    found = [store.get(run_id) for run_id in run_ids]
    for run in found:
        run.check_finished_training()
    runs = runs_table(found)
    split, *others = runs["split"].unique()
    if others:
        hint = "name runs of one split: their figures are of different images"
        raise UserError("some runs are scored on validation images and some on test images", "RUN", hint)
    cells = cells_of_runs(_with_distinct_names(runs), split)
    base = base or cells["variant"].iloc[0]
    if not (cells["variant"] == base).any():
        names = ", ".join(cells["variant"].unique())
        raise UserError(f"no run is of the variant '{base}'", "--base", f"name one of {names}")
    cells = cells.sort_values("variant", key=lambda names: names != base, kind="stable")
    return [compare(cells, base, key, split) for key in ([metric] if metric else FIGURES)]


def _with_distinct_names(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs of which each variant name stands for one config: `train` with other overrides keeps the name, so the config's
    hash is added to names that several configs of one benchmark share.

    Raises:
        UserError: for two runs of one config and seed.
    """
    configs = runs.groupby(["variant", "benchmark"])["group_hash"].nunique()
    shared = runs["variant"].isin(configs[configs > 1].index.get_level_values("variant"))
    runs = runs.assign(variant=runs["variant"].mask(shared, runs["variant"] + "." + runs["group_hash"].str[:8]))
    place = ["variant", "benchmark", "seed"]
    for _, same in runs[runs.duplicated(place, keep=False)].groupby(place, sort=False):
        first, second, *_ = rows_of(same)
        what = f"{first.variant} on {first.benchmark} with seed {first.seed}"
        raise UserError(f"{first.run_id} and {second.run_id} are both of {what}", "RUN", "name one of them")
    return runs


def _check_metric(metric: str | None) -> None:
    if metric is not None and metric not in FIGURES:
        raise UserError(f"'{metric}' is no figure", "--metric", f"name one of {', '.join(FIGURES)}")
