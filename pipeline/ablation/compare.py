"""Comparisons of what the tracking store has, by name of a grid or by run ids."""

from __future__ import annotations

from collections.abc import Sequence

from mgmrn.errors import UserError
from pipeline.ablation.launch import survey
from pipeline.ablation.request import AblationRequest
from pipeline.ablation.results import comparisons, figures_of
from pipeline.analysis.comparison import Comparison, compare
from pipeline.analysis.scores import FIGURES, ScoreCard
from pipeline.tracking.store import TrackedRun, TrackingStore


def compare_grid(request: AblationRequest, metric: str | None) -> list[Comparison]:
    """The grid as far as it is there.

    Args:
        request: names the grid, the data and the store.
        metric: a key of `FIGURES`; None: all, the primary one first.

    Raises:
        UserError: for a bad grid or an unknown figure.
        TrackingError: when the tracking store cannot be reached.
    """
    _check(metric)
    surveyed = survey(request)
    return _chosen(comparisons(surveyed.grid, surveyed.plan()), metric)


def compare_runs(run_ids: Sequence[str], base: str | None, metric: str | None, tracking_uri: str) -> list[Comparison]:
    """Single runs, grouped by variant and benchmark.

    Args:
        run_ids: of finished runs on one split.
        base: the variant to compare with; None: the first run's.
        metric: a key of `FIGURES`; None: all.
        tracking_uri: of the store.

    Raises:
        UserError: for a run that is not finished or stands for something else, runs of two splits, or an unknown base.
        TrackingError: when the store cannot be reached or knows no such run.
    """
    _check(metric)
    store = TrackingStore.connect(tracking_uri)
    runs = [store.get(run_id) for run_id in run_ids]
    for run in runs:
        if run.tags.get("mgmrn.kind") != "run" or run.status != "FINISHED":
            raise UserError(
                f"{run.run_id} is no finished training run", "RUN", "name runs that `train` or `ablate` printed"
            )
    splits = {run.tags["mgmrn.split"] for run in runs}
    if len(splits) > 1:
        hint = "name runs of one split: their figures are of different images"
        raise UserError("some runs are scored on validation images and some on test images", "RUN", hint)
    cards = [_card(run) for run in runs]
    variants = list(dict.fromkeys(card.variant for card in cards))
    base = base or variants[0]
    if base not in variants:
        raise UserError(f"no run is of the variant '{base}'", "--base", f"name one of {', '.join(variants)}")
    ordered = sorted(cards, key=lambda card: card.variant != base)
    return _chosen([compare(ordered, base, key, splits.copy().pop()) for key in FIGURES], metric)


def _check(metric: str | None) -> None:
    if metric is not None and metric not in FIGURES:
        raise UserError(f"'{metric}' is no figure", "--metric", f"name one of {', '.join(FIGURES)}")


def _chosen(found: Sequence[Comparison], metric: str | None) -> list[Comparison]:
    return [one for one in found if metric in (None, one.metric)]


def _card(run: TrackedRun) -> ScoreCard:
    suffix = "-standin" if run.tags.get("mgmrn.standin") == "true" else ""
    return ScoreCard(
        benchmark=run.tags["mgmrn.benchmark"] + suffix,
        variant=run.tags["mgmrn.variant"],
        seed=int(run.tags["mgmrn.seed"]),
        state="cached",
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        metrics=figures_of(run),
        seconds=run.seconds,
        gpu_seconds=float(run.tags.get("mgmrn.gpu_seconds", 0)),
    )
