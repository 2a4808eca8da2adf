"""The placement group of a run whose trial was ended from outside: noted by rank 0, given back by who ended it.

Ray Train's own actor for that, which is not started (docs/adr/0009), asks the dashboard whether a controller is alive. A dashboard that is
busy, gone, or another instance's leaves the group and its CPUs taken for ever. Here the cluster itself is asked.
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
    """Called on a rank: notes the group that it was placed in."""
    group = get_current_placement_group()
    if group is not None:
        with replacing(path) as file:
            file.write(group.id.hex().encode())


def give_back(path: Path, grace_seconds: float = 0.0) -> None:
    """Removes the noted group, where it is still there after a time in which Ray may do it itself.

    Args:
        path: the note; without one there was no group, or no rank that came up in it.
        grace_seconds: how long Ray is waited for.
    """
    if not path.exists():
        return
    group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(path.read_text())))
    deadline = time.monotonic() + grace_seconds
    while _stands(group):
        if time.monotonic() >= deadline:
            remove_placement_group(group)
            return
        time.sleep(POLL_SECONDS)


def _stands(group: PlacementGroup) -> bool:
    # A group of an earlier cluster is not in the table.
    return placement_group_table(group).get("state", "REMOVED") != "REMOVED"
