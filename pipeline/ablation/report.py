"""Report page of a grid: comparisons, curves, changes per class and config, written as a file and logged with the grid's parent run."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from mgmrn.atomic_file import replacing
from mgmrn.errors import UserError
from pipeline import places
from pipeline.ablation.config import AblationFile
from pipeline.ablation.grid import Grid
from pipeline.ablation.plan import PlannedCell, survey
from pipeline.ablation.results import comparisons
from pipeline.analysis.page.page import PageContent, render_page
from pipeline.analysis.runs import LOCALISED
from pipeline.analysis.tables import percent, published_on
from pipeline.config.compose import diff
from pipeline.config.yaml_tree import yaml_value
from pipeline.console import shell_command
from pipeline.tracking.environment import git_state
from pipeline.tracking.store import TrackingStore
from pipeline.train.tracked import PARENT_SPLIT
from pipeline.where import Where


def make_report(
    file: AblationFile, where: Where, out: Path | None, ui: str | None, words: Sequence[str]
) -> tuple[PageContent, Path, str | None]:
    """Write the page of a grid, log it with the grid's parent run if any, and return it with its path and the id of that run.

    It shows its command, `report` with these `words`, and links run ids to the MLflow UI at `ui`. Without `out`, each grid has a file of
    its own, also among grids of one name.
    """
    surveyed = survey(file, where, TrackingStore.open)
    grid, store, planned = surveyed.grid, surveyed.store, surveyed.plan()
    if not any(cell.evaluated for cell in planned):
        hint = f"run it first: {shell_command('ablate', *words)}"
        raise UserError(f"no cell of {file.name} has a score yet", file.label, hint)
    compared = comparisons(grid, planned)
    content = PageContent(
        title=f"Ablation {file.name}",
        question=file.question,
        command=shell_command("report", *words),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git_state().sha,
        comparisons=tuple(compared),
        curves=_artifacts(store, planned, "eval/curve.csv"),
        classes=_class_changes(_artifacts(store, planned, "eval/per_class.csv"), grid.base.name),
        configs=_config_changes(grid),
        localisation=_localisation(planned),
        published=published_on(compared[0].benchmarks),
        ui=ui,
    )
    path = out or places.REPORTS / f"{file.name}-{surveyed.key[:8]}.html"
    with replacing(path) as page:
        page.write(render_page(content).encode())
    parent = store.find_finished(surveyed.key, PARENT_SPLIT)
    if parent is not None:
        store.log_file(parent.run_id, path, "report")
    return content, path, parent.run_id if parent else None


def _artifacts(store: TrackingStore, planned: Sequence[PlannedCell], path: str) -> pd.DataFrame:
    """Rows of a CSV artifact of all evaluated runs, with `benchmark`, `variant`, `seed`, `run_id`."""
    found = []
    for one in planned:
        if one.evaluated is not None:
            table, cell = pd.read_csv(io.StringIO(store.read_text(one.evaluated.run_id, path))), one.cell
            table = table.assign(benchmark=cell.benchmark, variant=cell.variant, seed=cell.seed)
            found.append(table.assign(run_id=one.evaluated.run_id))
    return pd.concat(found)


def _class_changes(accuracies: pd.DataFrame, base: str) -> pd.DataFrame:
    """Difference of each class's accuracy at γ to the base, mean over the seeds that both have."""
    accuracies = accuracies[accuracies["images"] > 0]
    is_base = accuracies["variant"] == base
    keys = ["benchmark", "seed", "class", "group"]
    pairs = accuracies[~is_base].merge(accuracies[is_base][[*keys, "accuracy"]], on=keys, suffixes=("", "_base"))
    differences = pairs.assign(difference=pairs["accuracy"] - pairs["accuracy_base"])
    by_class = differences.groupby(["benchmark", "variant", "class", "group"], sort=False)["difference"]
    return by_class.mean().reset_index()


def _localisation(planned: Sequence[PlannedCell]) -> pd.DataFrame:
    """Figures of `localise` in percent, mean ± std (number of seeds), one row per benchmark, variant, split, level and part."""
    rows = [
        (one.cell.benchmark, one.cell.variant, *name.split("/")[1:], value)
        for one in planned
        if one.evaluated is not None
        for name, value in one.evaluated.metrics.items()
        if name.startswith("localise/")
    ]
    keys = ["benchmark", "variant", "split", "level", "part"]
    table = pd.DataFrame(rows, columns=[*keys, "figure", "value"])
    table = table.replace({"level": "_", "part": "_"}, " ", regex=True)
    cells = table.groupby([*keys, "figure"])["value"].agg(lambda x: f"{percent(x.mean(), x.std())} ({len(x)})")
    return cells.unstack().reindex(columns=list(LOCALISED)).rename(columns=LOCALISED).reset_index()


def _config_changes(grid: Grid) -> dict[str, list[tuple[str, str, str]]]:
    """Config values that each variant changes on the first benchmark; they are the same on the others."""
    base, *others = ((one.name, one.configs[grid.benchmarks[0]].config) for one in grid.variants)
    return {
        name: [(path, yaml_value(before), yaml_value(after)) for path, (before, after) in diff(base[1], config).items()]
        for name, config in others
    }
