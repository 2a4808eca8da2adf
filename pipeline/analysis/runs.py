"""Training runs of the tracking store as a table with one row a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from mgmrn.config import LEVELS
from mgmrn.errors import UserError
from pipeline import places

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.tracking.store import TrackedRun

FIGURES = dict(zsl_t1="T1", gzsl_u="U", gzsl_s="S", gzsl_h="H", gzsl_h_oracle="H*", ausuc="AUSUC")
"""Name of an accuracy in the tracking store (without `test/` or `val/`) → symbol in the field."""
LEVEL_FIGURES = {f"ausuc/{level}": f"AUSUC of {level}" for level in LEVELS}
"""Names and symbols of the AUSUC of each level alone, which runs of several levels have."""
SYMBOLS = FIGURES | LEVEL_FIGURES
"""Symbols of all figures by which runs can be compared."""
HEADLINE = ("gzsl_h", "zsl_t1", "ausuc")
"""Figures that the description of a run names."""

LOCALISED = dict(pointing="pointing", pointing_chance="its chance", pcp="PCP", pcp_chance="PCP's chance")
"""Heading of a figure of localisation (`localise/SPLIT/LEVEL/PART/FIGURE` in the tracking store)."""

CellState = Literal["cached", "stale", "running", "failed", "new", "missing"]
"""Finished; finished with other code, data or environment; running; failed; not run yet; benchmark not found."""

TAGS = ("benchmark", "variant", "split", "seed", "config_hash", "group_hash", "data_digest", "code_sha")


def prefix_of(split: str) -> str:
    """Prefix of a split's figures: `tune` is scored on validation images, `final` on test images."""
    return "val/" if split == "tune" else "test/"


def load_runs(experiment: str = "mgmrn/%", *, tracking_uri: str = places.TRACKING_URI, where: str = "") -> pd.DataFrame:
    """Training runs as a `DataFrame` with one row a run, the latest first.

    Columns: `run_id`, `name`, `experiment_id`, `status`, those of `TAGS`, `gamma`, `seconds`, `gpu_seconds`, then every metric by its MLflow
    name (`test/gzsl_h`, `train/loss`, …; NaN where a run has none): the final figures of a finished run, the last values of the others.

    `experiment` is one of MLflow (`mgmrn/train`), a pattern of SQL's LIKE (`mgmrn/%`: all), or the name of an ablation, which includes runs
    of other launches, or of a search. `where` is a further filter in MLflow's syntax, such as ``tags.`mgmrn.split` = 'final'``.

    Raises `UserError` when no run is found, and `TrackingError` when the store is unreachable or refuses the filter.
    """
    from pipeline.tracking.store import TrackingStore

    is_name = not set(experiment) & set("/%")
    patterns = [f"mgmrn/ablation/{experiment}", f"mgmrn/search/{experiment}"] if is_name else [experiment]
    store = TrackingStore.open(tracking_uri)
    suffix = f" and {where}" if where else ""
    runs = store.runs_of(patterns, f"tags.`mgmrn.kind` = 'run'{suffix}")
    if is_name:
        links = store.runs_of(patterns, f"tags.`mgmrn.kind` = 'link' and attributes.status = 'FINISHED'{suffix}")
        names = [(link.tags["mgmrn.linked_run_id"], {"mgmrn.variant": link.tags["mgmrn.variant"]}) for link in links]
        ids = ", ".join(f"'{run_id}'" for run_id, _ in names)
        linked = store.runs_of(("mgmrn/%",), f"attributes.run_id IN ({ids})") if ids else []
        by_id = {run.run_id: run for run in linked}
        runs += [replace(run, tags={**run.tags, **name}) for one, name in names if (run := by_id.get(one))]
    if not runs:
        hint = "give `mgmrn/train`, the name of an ablation or search that ran, or another tracking_uri"
        raise UserError(f"there is no run in '{experiment}'{f' where {where}' if where else ''}", "experiment", hint)
    return runs_table(runs)


def rows_of(table: pd.DataFrame) -> list[Any]:
    """Rows with the columns as attributes."""
    return list(table.itertuples(index=False))


def records_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain Python values, with None for NaN."""
    plain = table.astype(object).where(table.notna(), None)
    return [{str(key): value for key, value in row.items()} for row in plain.to_dict("records")]


def runs_table(runs: Iterable[TrackedRun]) -> pd.DataFrame:
    """The table of `load_runs` for runs that were read before; without any, it has the first columns alone."""
    import pandas as pd

    rows: list[dict[str, object]] = []
    for run in runs:
        row: dict[str, object] = {key: getattr(run, key) for key in ("run_id", "name", "experiment_id", "status")}
        row |= {name: run.tags.get(f"mgmrn.{name}", "") for name in TAGS}
        result = json.loads(run.tags.get("mgmrn.result", "{}"))
        row |= {"seed": int(run.tags["mgmrn.seed"]), "gamma": result.get("gamma")}
        row |= {"seconds": run.seconds, "gpu_seconds": run.gpu_seconds}
        rows.append(row | dict(run.metrics) | result.get("metrics", {}))
    first = ["run_id", "name", "experiment_id", "status", *TAGS, "gamma", "seconds", "gpu_seconds"]
    return pd.DataFrame(rows, columns=None if rows else first).astype({"gamma": float, "seconds": float})
