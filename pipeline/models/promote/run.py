"""`promote`: registers a run's model as `mgmrn-<benchmark>`, beside what it is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.analysis.comparison import Comparison, cells_of_runs, compare
from pipeline.analysis.runs import FIGURES, runs_table
from pipeline.models.promote.group import Group, check_promotable, group_of
from pipeline.tracking.model import MODEL_TAG
from pipeline.tracking.naming import find_run
from pipeline.tracking.registry import (
    CANDIDATE,
    CHAMPION,
    Version,
    register,
    remove_alias,
    set_alias,
    version_of_alias,
)
from pipeline.tracking.store import TrackingStore

PRIMARY = "gzsl_h"
"""The figure that is compared first."""
_KEPT = ("config_hash", "group_hash", "data_digest", "code_sha", "seed")
"""Tags of a run that its version carries too."""


@dataclass(frozen=True)
class Promotion:
    """What became of a run's model."""

    version: Version
    alias: str
    group: Group
    champion: Version | None
    """The one that there was before."""
    comparisons: tuple[Comparison, ...]
    """By every figure; none without a champion of another config on the same data."""
    remark: str
    """Why there is no comparison; empty where there is one."""


def promote(name: str, tracking_uri: str, *, alias: str) -> Promotion:
    """Registers the model of a run, under an alias that it takes from another version.

    A run that is registered already keeps its version. What becomes the champion is no candidate any more.

    Args:
        name: the run's id or name.
        tracking_uri: of the store.
        alias: `candidate` or `champion`.

    Raises:
        UserError: when the run must not be promoted; nothing was changed.
        TrackingError: when the store cannot be reached or knows no such run.
    """
    store = TrackingStore.connect(tracking_uri)
    group = group_of(store, find_run(store, name))
    check_promotable(group)
    run = group.run
    model = f"mgmrn-{run.tags['mgmrn.benchmark']}"
    champion = version_of_alias(store, model, CHAMPION)
    comparisons, remark = _against(store, group, champion)
    tags = {f"mgmrn.{key}": run.tags[f"mgmrn.{key}"] for key in _KEPT if f"mgmrn.{key}" in run.tags}
    version = register(store, model, run.tags[MODEL_TAG], run.run_id, tags, f"Mg-MRN on {run.tags['mgmrn.benchmark']}")
    if alias == CANDIDATE and CHAMPION in version.aliases:
        return Promotion(version, CHAMPION, group, champion, comparisons, remark)
    set_alias(store, version, alias)
    if alias == CHAMPION and CANDIDATE in version.aliases:
        remove_alias(store, version, CANDIDATE)
    return Promotion(version, alias, group, champion, comparisons, remark)


def _against(store: TrackingStore, group: Group, champion: Version | None) -> tuple[tuple[Comparison, ...], str]:
    """The group's figures beside those of the champion's group, paired by seed; or why they are not shown."""
    if champion is None:
        return (), "there is no champion yet"
    if champion.run_id == group.run.run_id:
        return (), "it is the champion"
    theirs = group_of(store, store.get(champion.run_id))
    if theirs.run.tags.get("mgmrn.data_digest") != group.run.tags.get("mgmrn.data_digest"):
        return (), f"the champion, version {champion.number}, was scored on other data, so no difference is shown"
    if {run.run_id for run in theirs.runs.values()} == {run.run_id for run in group.runs.values()}:
        return (), f"the champion, version {champion.number}, is another seed of the same config"
    import pandas as pd

    sides = [
        runs_table(one.runs.values()).assign(variant=name) for one, name in ((theirs, CHAMPION), (group, CANDIDATE))
    ]
    cells = cells_of_runs(pd.concat(sides), "final")
    return tuple(compare(cells, CHAMPION, key, "final") for key in sorted(FIGURES, key=lambda key: key != PRIMARY)), ""
