"""Placement group of a run whose trial was ended from outside: rank 0 notes its id, the driver releases it.

Ray Train's own actor for that asks the dashboard whether a controller is alive. A dashboard that is busy or gone leaves the group and its
CPUs taken for ever. Here the cluster itself is asked.
"""

from __future__ import annotations

import time
from pathlib import Path

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group_table,
    remove_placement_group,
)

from mgmrn.atomic_file import replacing

POLL_SECONDS = 0.25


def note_placement_group(path: Path) -> None:
    """Writes the id of the group that this rank was placed in."""
    group = get_current_placement_group()
    if group is not None:
        with replacing(path) as file:
            file.write(group.id.hex().encode())


def release_placement_group(path: Path, grace_seconds: float = 0.0) -> None:
    """Removes the noted group, if Ray has not removed it itself within a grace period.

    Args:
        path: file of the group's id; absent where no rank came up.
        grace_seconds: seconds that Ray is given.
    """
    if not path.exists():
        return
    group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(path.read_text())))
    deadline = time.monotonic() + grace_seconds
    # An interrupted launch disconnects from Ray, which ends its groups; the calls below would start an instance of their own then.
    while ray.is_initialized() and _stands(group):
        if time.monotonic() >= deadline:
            remove_placement_group(group)
            return
        time.sleep(POLL_SECONDS)


def _stands(group: PlacementGroup) -> bool:
    # A group of an earlier cluster is not in the table.
    return placement_group_table(group).get("state", "REMOVED") != "REMOVED"
