"""Comparisons of what the tracking store has, by name of a grid or by run ids."""

from __future__ import annotations

from collections.abc import Sequence

from mgmrn.errors import UserError
from pipeline.ablation.launch import survey
from pipeline.ablation.request import AblationRequest
from pipeline.ablation.results import comparison_by, comparisons, figures_of
from pipeline.analysis.comparison import Comparison, compare
from pipeline.analysis.scores import FIGURES, ScoreCard
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train.cell import shown_benchmark


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
    grid, planned = surveyed.grid, surveyed.plan()
    return comparisons(grid, planned) if metric is None else [comparison_by(metric, grid, planned)]


def compare_runs(run_ids: Sequence[str], base: str | None, metric: str | None, tracking_uri: str) -> list[Comparison]:
    """Single runs, grouped by variant and benchmark.

    Args:
        run_ids: of finished runs on one split.
        base: the variant to compare with; None: the first run's.
        metric: a key of `FIGURES`; None: all.
        tracking_uri: of the store.

    Raises:
        UserError: for a run that is not finished or stands for something else, runs of two splits, two runs of one
            config and seed, or an unknown base.
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
    split, *others = {run.tags["mgmrn.split"] for run in runs}
    if others:
        hint = "name runs of one split: their figures are of different images"
        raise UserError("some runs are scored on validation images and some on test images", "RUN", hint)
    cards = _cards(runs)
    variants = list(dict.fromkeys(card.variant for card in cards))
    base = base or variants[0]
    if base not in variants:
        raise UserError(f"no run is of the variant '{base}'", "--base", f"name one of {', '.join(variants)}")
    ordered = sorted(cards, key=lambda card: card.variant != base)
    return [compare(ordered, base, key, split) for key in ([metric] if metric else FIGURES)]


def _check(metric: str | None) -> None:
    if metric is not None and metric not in FIGURES:
        raise UserError(f"'{metric}' is no figure", "--metric", f"name one of {', '.join(FIGURES)}")


def _cards(runs: Sequence[TrackedRun]) -> list[ScoreCard]:
    """One per run; configs that go by one name, as `train` with other overrides does, are told apart by their hashes."""
    configs: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        configs.setdefault((run.tags["mgmrn.variant"], _benchmark(run)), set()).add(run.tags["mgmrn.group_hash"])
    shared = {variant for (variant, _), hashes in configs.items() if len(hashes) > 1}
    cards: dict[tuple[str, str, int], ScoreCard] = {}
    for run in runs:
        variant = run.tags["mgmrn.variant"]
        card = card_of_run(run, f"{variant}.{run.tags['mgmrn.group_hash'][:8]}" if variant in shared else variant)
        earlier = cards.setdefault((card.variant, card.benchmark, card.seed), card)
        if earlier is not card:
            what = f"{card.variant} on {card.benchmark} with seed {card.seed}"
            raise UserError(f"{earlier.run_id} and {card.run_id} are both of {what}", "RUN", "name one of them")
    return list(cards.values())


def _benchmark(run: TrackedRun) -> str:
    return shown_benchmark(run.tags["mgmrn.benchmark"], standin=run.tags.get("mgmrn.standin") == "true")


def card_of_run(run: TrackedRun, variant: str) -> ScoreCard:
    """The card of a finished run, under a name of its own."""
    return ScoreCard(
        benchmark=_benchmark(run),
        variant=variant,
        seed=int(run.tags["mgmrn.seed"]),
        state="cached",
        run_id=run.run_id,
        experiment_id=run.experiment_id,
        metrics=figures_of(run),
        seconds=run.seconds,
        gpu_seconds=run.gpu_seconds,
    )
