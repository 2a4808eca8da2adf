"""The runs of one config that differ by their seed alone, and what speaks against promoting one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mgmrn.errors import UserError
from pipeline.analysis.paired import LEAST_PAIRS
from pipeline.tracking.environment import NO_GIT
from pipeline.tracking.model import MODEL_TAG
from pipeline.tracking.store import TrackedRun, TrackingStore


@dataclass(frozen=True)
class Group:
    """A run and the others of its config on the final split, made by the same code."""

    run: TrackedRun
    runs: Mapping[int, TrackedRun]
    """The latest finished run of each seed; of the named run's seed, that run."""

    @property
    def seeds(self) -> list[int]:
        """Ascending."""
        return sorted(self.runs)


def group_of(store: TrackingStore, run: TrackedRun) -> Group:
    """Finished runs on the final split with the same config, data and science code, from committed code.

    Raises:
        TrackingError: when the store is away.
    """
    wanted = (
        f"tags.`mgmrn.group_hash` = '{run.tags.get('mgmrn.group_hash', '')}' and tags.`mgmrn.split` = 'final' "
        "and tags.`mgmrn.kind` = 'run' and attributes.status = 'FINISHED'"
    )
    found: dict[int, TrackedRun] = {}
    for one in (run, *store.runs_of(("mgmrn/%",), wanted)):
        same_code = one.tags.get("mgmrn.code_digest") == run.tags.get("mgmrn.code_digest")
        if same_code and _is_committed(one) and "mgmrn.seed" in one.tags:
            found.setdefault(int(one.tags["mgmrn.seed"]), one)
    return Group(run, found)


def check_promotable(group: Group) -> None:
    """Refuses what a registered model must not be.

    Raises:
        UserError: with everything that speaks against it.
    """
    run, tags = group.run, group.run.tags
    if tags.get("mgmrn.kind") != "run" or run.status != "FINISHED":
        raise UserError(
            f"{run.run_id} is no finished training run", "RUN", "name a run that `train` or `ablate` printed"
        )
    against: list[tuple[str, str]] = []
    if tags.get("mgmrn.split") != "final":
        against.append(("it is not a run of the final split", "name the final run of its config"))
    if tags.get("mgmrn.standin") == "true":
        against.append(("its pictures are drawn stand-ins", "train on the real ones"))
    if not _is_committed(run):
        against.append(("its code is not committed", "commit the code and train again"))
    if not tags.get(MODEL_TAG):
        against.append(("it has logged no model", "ESZSL and tune runs log none"))
    if len(group.runs) < LEAST_PAIRS:
        seeds = ", ".join(map(str, group.seeds)) or "none"
        against.append(
            (
                f"its config has {len(group.runs)} finished final seeds of committed code ({seeds}), {LEAST_PAIRS} are needed",
                "train it with --seeds 0,1,2",
            )
        )
    if against:
        reasons, hints = zip(*against, strict=True)
        raise UserError(f"{run.name} cannot be promoted: {'; '.join(reasons)}", "RUN", "; ".join(hints))


def _is_committed(run: TrackedRun) -> bool:
    return run.tags.get("mgmrn.code_dirty") == "false" and run.tags.get("mgmrn.code_sha", NO_GIT) != NO_GIT
