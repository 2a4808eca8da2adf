"""The page of a grid: what it shows is read from the runs that it cites, and the page is left with the parent."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from mgmrn.atomic_file import replacing
from mgmrn.errors import UserError
from pipeline.ablation.grid import Grid
from pipeline.ablation.launch import parent_key, survey
from pipeline.ablation.plan import PlannedCell
from pipeline.ablation.request import AblationRequest
from pipeline.ablation.results import comparisons
from pipeline.analysis.page.content import ClassChange, ClassChanges, ConfigChange, Curve, PageContent, VariantConfig
from pipeline.analysis.page.page import render_page
from pipeline.analysis.published import published_on
from pipeline.config.compose import diff
from pipeline.config.yaml_tree import yaml_value
from pipeline.tracking.environment import git_state
from pipeline.tracking.store import TrackedRun, TrackingStore
from pipeline.train.parent import PARENT_SPLIT

Variants = dict[tuple[str, str], dict[int, TrackedRun]]
"""(variant, benchmark) → seed → evaluated run."""


@dataclass(frozen=True)
class Report:
    """A page that was made."""

    path: Path
    content: PageContent
    parent_run_id: str | None
    """The run that has it as an artifact; None where the grid was never launched."""


def make_report(request: AblationRequest, path: Path, ui: str | None, command: str) -> Report:
    """Writes the page, and logs it to the grid's parent.

    Args:
        request: names the grid, the data and the store.
        path: of the page.
        ui: address of the MLflow UI that run ids link to; None: they are plain text.
        command: that the page says it was made by.

    Raises:
        UserError: for a bad grid, or one of which no cell has a score.
        TrackingError: when the tracking store cannot be reached.
    """
    surveyed = survey(request)
    planned = surveyed.plan()
    if not any(cell.evaluated for cell in planned):
        name = request.file.name
        raise UserError(f"no cell of {name} has a score yet", request.file.label, f"run it first: ablate {name}")
    content = _content(request, surveyed.grid, surveyed.store, planned, ui, command)
    with replacing(path) as file:
        file.write(render_page(content).encode())
    parent = surveyed.store.find_finished(parent_key(surveyed), PARENT_SPLIT)
    if parent is not None:
        surveyed.store.log_file(parent.run_id, path, "report")
    return Report(path, content, parent.run_id if parent else None)


def _content(
    request: AblationRequest,
    grid: Grid,
    store: TrackingStore,
    planned: Sequence[PlannedCell],
    ui: str | None,
    command: str,
) -> PageContent:
    compared = comparisons(grid, planned)
    runs = _runs(planned)
    return PageContent(
        title=f"Ablation {request.file.name}",
        question=request.file.question,
        command=command,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git_state().sha,
        standin=any(run.tags.get("mgmrn.standin") == "true" for found in runs.values() for run in found.values()),
        comparisons=tuple(compared),
        curves=tuple(_curves(store, runs)),
        classes=tuple(_class_changes(store, runs, grid.base.name)),
        configs=tuple(_configs(grid)),
        published=published_on(compared[0].benchmarks),
        ui=ui,
    )


def _runs(planned: Sequence[PlannedCell]) -> Variants:
    found: Variants = {}
    for one in planned:
        if one.evaluated is not None:
            found.setdefault((one.cell.variant, one.cell.benchmark), {})[one.cell.seed] = one.evaluated
    return found


def _curves(store: TrackingStore, runs: Variants) -> Iterator[Curve]:
    for (variant, benchmark), by_seed in runs.items():
        for run in by_seed.values():
            rows = _table(store, run, "eval/curve.csv")
            yield Curve(
                benchmark, variant, run.run_id, tuple((float(row["seen"]), float(row["unseen"])) for row in rows)
            )


def _class_changes(store: TrackingStore, runs: Variants, base: str) -> Iterator[ClassChanges]:
    accuracies = {
        key: {seed: _accuracies(store, run) for seed, run in by_seed.items()} for key, by_seed in runs.items()
    }
    for (variant, benchmark), by_seed in accuracies.items():
        theirs = accuracies.get((base, benchmark), {})
        seeds = sorted(by_seed.keys() & theirs.keys())
        if variant == base or not seeds:
            continue
        changes = tuple(
            ClassChange(
                name, group, statistics.fmean(by_seed[seed][name, group] - theirs[seed][name, group] for seed in seeds)
            )
            for name, group in by_seed[seeds[0]]
            if all((name, group) in theirs[seed] and (name, group) in by_seed[seed] for seed in seeds)
        )
        yield ClassChanges(benchmark, variant, changes)


def _accuracies(store: TrackingStore, run: TrackedRun) -> dict[tuple[str, Literal["seen", "unseen"]], float]:
    """(class, group) → accuracy at the run's γ."""
    return {
        (row["class"], cast(Literal["seen", "unseen"], row["group"])): float(row["accuracy"])
        for row in _table(store, run, "eval/per_class.csv")
        if int(row["images"])
    }


def _table(store: TrackingStore, run: TrackedRun, path: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(store.read_text(run.run_id, path))))


def _configs(grid: Grid) -> Iterator[VariantConfig]:
    """Differences on the first benchmark; the others have the same."""
    benchmark = grid.benchmarks[0]
    base = grid.base.configs[benchmark].config
    for variant in grid.variants[1:]:
        changes = diff(base, variant.configs[benchmark].config)
        shown = (ConfigChange(one.path, yaml_value(one.before), yaml_value(one.after)) for one in changes)
        yield VariantConfig(variant.name, tuple(shown))
