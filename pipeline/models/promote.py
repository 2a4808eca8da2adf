"""Registration of a run's model as `mgmrn-<benchmark>`, and its comparison with the champion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mgmrn.errors import UserError
from pipeline.analysis.comparison import Comparison, cells_of_runs, compare
from pipeline.analysis.paired import LEAST_PAIRS
from pipeline.analysis.runs import FIGURES, runs_table
from pipeline.analysis.tables import as_dict, show_tables, tables
from pipeline.console import Console
from pipeline.tracking.environment import NO_GIT
from pipeline.tracking.registry import CANDIDATE, CHAMPION, Version, register, set_alias, version_of_alias
from pipeline.tracking.store import MODEL_TAG, NO_MODEL_HINT, TrackedRun, TrackingStore

PRIMARY = "gzsl_h"
_KEPT = ("config_hash", "group_hash", "data_digest", "code_sha", "seed")
"""Tags of a run that its version carries too."""

Seeds = Mapping[int, TrackedRun]
"""Seed → latest finished run on the final split, all of one config, data and code."""


@dataclass(frozen=True)
class Promotion:
    """A registered model, and its comparison with the previous champion."""

    version: Version
    alias: str
    run: TrackedRun
    seeds: Seeds
    champion: Version | None
    comparisons: tuple[Comparison, ...]
    """One per figure; empty if the remark says why there is none."""
    remark: str

    def to_json(self) -> dict[str, Any]:
        return {
            **{"model": self.version.name, "version": self.version.number, "alias": self.alias},
            "uri": f"models:/{self.version.name}@{self.alias}",
            "run_id": self.run.run_id,
            "seeds": {str(seed): run.run_id for seed, run in sorted(self.seeds.items())},
            "champion_before": self.champion.number if self.champion else None,
            "remark": self.remark,
            **as_dict(self.comparisons),
        }

    def show(self, console: Console) -> None:
        if self.comparisons:
            show_tables(tables(self.comparisons), console)
        else:
            console.line(self.remark)
        version, seeds = self.version, ", ".join(map(str, sorted(self.seeds)))
        console.line(f"{version.name} version {version.number} is the {self.alias}: {self.run.name} (seeds {seeds})")
        console.line(f"load it as models:/{version.name}@{self.alias}")


def promote(name: str, tracking_uri: str, *, alias: str) -> Promotion:
    """Register the model of a run (id or name) under the alias `candidate` or `champion`, which another version loses.

    Raises `UserError` when the run must not be promoted, and `TrackingError` when the store is unreachable or does not know the run.
    """
    store = TrackingStore.open(tracking_uri)
    run = store.find_run(name)
    seeds = find_seeds(store, run)
    check_promotable(run, seeds)
    model = f"mgmrn-{run.tags['mgmrn.benchmark']}"
    champion = version_of_alias(store, model, CHAMPION)
    comparisons, remark = _against(store, run, seeds, champion)
    tags = {f"mgmrn.{key}": run.tags[f"mgmrn.{key}"] for key in _KEPT if f"mgmrn.{key}" in run.tags}
    version = register(store, model, run.tags[MODEL_TAG], run.run_id, tags, f"Mg-MRN on {run.tags['mgmrn.benchmark']}")
    if CHAMPION in version.aliases:
        alias = CHAMPION
    set_alias(store, version, alias)
    return Promotion(version, alias, run, seeds, champion, comparisons, remark)


def find_seeds(store: TrackingStore, run: TrackedRun) -> Seeds:
    """The run, and the latest finished `final` runs of other seeds with its config, data and science code, from committed code."""
    group = f"tags.`mgmrn.group_hash` = '{run.tags.get('mgmrn.group_hash', '')}' and tags.`mgmrn.split` = 'final'"
    wanted = f"{group} and tags.`mgmrn.kind` = 'run' and attributes.status = 'FINISHED'"
    found: dict[int, TrackedRun] = {}
    for one in (run, *store.runs_of(("mgmrn/%",), wanted)):
        is_same_code = one.tags.get("mgmrn.code_digest") == run.tags.get("mgmrn.code_digest")
        if is_same_code and _is_committed(one) and "mgmrn.seed" in one.tags:
            found.setdefault(int(one.tags["mgmrn.seed"]), one)
    return found


def check_promotable(run: TrackedRun, seeds: Seeds) -> None:
    """Refuse a run that must not be registered, with all reasons."""
    run.check_finished_training()
    tags, listed = run.tags, ", ".join(map(str, sorted(seeds))) or "none"
    few = f"its config has {len(seeds)} finished final seeds of committed code ({listed}), {LEAST_PAIRS} are needed"
    is_standin = tags.get("mgmrn.benchmark", "").endswith("-standin")
    checks = (
        (tags.get("mgmrn.split") != "final", "it is not a run of the final split", "name the final run of its config"),
        (is_standin, "its pictures are drawn stand-ins", "train on the real ones"),
        (not _is_committed(run), "its code is not committed", "commit the code and train again"),
        (not tags.get(MODEL_TAG), "it has logged no model", NO_MODEL_HINT),
        (len(seeds) < LEAST_PAIRS, few, "train it with --seeds 0,1,2"),
    )
    failed = [(reason, hint) for has_failed, reason, hint in checks if has_failed]
    if failed:
        reasons, hints = zip(*failed, strict=True)
        raise UserError(f"{run.name} cannot be promoted: {'; '.join(reasons)}", "RUN", "; ".join(hints))


def _is_committed(run: TrackedRun) -> bool:
    return run.tags.get("mgmrn.code_dirty") == "false" and run.tags.get("mgmrn.code_sha", NO_GIT) != NO_GIT


def _against(
    store: TrackingStore, run: TrackedRun, seeds: Seeds, champion: Version | None
) -> tuple[tuple[Comparison, ...], str]:
    """Comparisons of a run's seeds with those of the champion's config, paired by seed; or the reason for their lack."""
    if champion is None:
        return (), "there is no champion yet"
    if champion.run_id == run.run_id:
        return (), "it is the champion"
    theirs = store.get(champion.run_id)
    their_seeds = find_seeds(store, theirs)
    if theirs.tags.get("mgmrn.data_digest") != run.tags.get("mgmrn.data_digest"):
        return (), f"the champion, version {champion.number}, was scored on other data, so no difference is shown"
    if {one.run_id for one in their_seeds.values()} == {one.run_id for one in seeds.values()}:
        return (), f"the champion, version {champion.number}, is another seed of the same config"
    sides = ((their_seeds, CHAMPION), (seeds, CANDIDATE))
    runs = pd.concat([runs_table(one.values()).assign(variant=name) for one, name in sides])
    metrics = sorted(FIGURES, key=lambda key: key != PRIMARY)
    return tuple(compare(cells_of_runs(runs, "final"), CHAMPION, key, "final") for key in metrics), ""
