"""Cached maps on a GPU: loaded once per process where they fit, and indexed there, so that a step copies nothing from the host.

N pictures of a file, V views (2 with mirror images, else 1), M selected pictures, C channels, h w grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float16, Int
from torch import Tensor

from mgmrn.config import Level
from mgmrn.data.episodes import Rows
from mgmrn.data.feature_cache import CachedMaps

MAPS_SHARE = 0.5
"""Part of the memory that a process may still take which maps may fill; the rest is for the network and its activations."""
CHUNK = 256
"""Pictures that are copied at once."""

_loaded: dict[tuple[str, ...], Float16[Tensor, "VN C h w"]] = {}
"""Maps of this process by their files; its later runs, on the same device, use them again."""
_kept_off = False
"""Whether this process has run out of memory with maps on its device."""


@dataclass(frozen=True)
class ResidentMaps:
    """Maps of M pictures, in whole files on a device."""

    files: dict[Level, Float16[Tensor, "_ _ _ _"]]
    """Maps `V·N C h w` of each level: of the pictures, then of their mirror images."""
    rows: Int[np.ndarray, " M"]
    count: int
    """Pictures of a file, N."""

    def batches(self, batches: Sequence[Rows], mirrored: Bool[np.ndarray, " M"]) -> Iterator[dict[Level, Tensor]]:
        """`CachedMaps.batches` on the device, to which all indices are copied before the first batch."""
        index = (self.rows + self.count * mirrored)[np.concatenate([np.arange(0), *batches])]
        on_device = torch.from_numpy(index).to(next(iter(self.files.values())).device)
        for part in torch.split(on_device, [len(rows) for rows in batches]):
            yield {level: maps.index_select(0, part) for level, maps in self.files.items()}


def place_maps(parts: Sequence[CachedMaps], device: torch.device) -> tuple[list[CachedMaps] | list[ResidentMaps], str]:
    """The same maps on the device where all of them fit, else as they are; and what was loaded, in a sentence.

    Maps of earlier runs that these do not need are dropped.
    """
    files = {_key(views): views for part in parts for views in part.views.values()}
    for key in _loaded.keys() - files.keys():
        del _loaded[key]
    missing = {key: views for key, views in files.items() if key not in _loaded}
    needed = sum(view.nbytes for views in missing.values() for view in views)
    if _kept_off or not fits(needed, free_bytes(device)):
        _loaded.clear()
        return list(parts), ""
    _loaded.update({key: _load(views, device) for key, views in missing.items()})
    placed = []
    for part in parts:
        maps = {level: _loaded[_key(views)] for level, views in part.views.items()}
        placed.append(ResidentMaps(maps, part.rows, len(next(iter(part.views.values()))[0])))
    return placed, f"{needed / 2**30:.1f} GiB of maps are on the GPU" if missing else ""


def drop_maps() -> bool:
    """Drops the maps from the device and loads none for the rest of this process, which ran out of memory; whether there were any."""
    global _kept_off
    _kept_off, had = True, bool(_loaded)
    _loaded.clear()
    return had


def fits(needed: int, free: int) -> bool:
    """Whether maps of so many bytes leave enough of the free bytes to train with."""
    return needed <= MAPS_SHARE * free


def free_bytes(device: torch.device) -> int:
    """Bytes that this process may still take of a GPU, within its part of the memory; on a CPU none, whose processes share files."""
    if device.type != "cuda":
        return 0
    with torch.cuda.device(device):
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        own = int(total * torch.cuda.get_per_process_memory_fraction()) - reserved
        return min(free, own) + reserved - torch.cuda.memory_allocated()


def _key(views: Sequence[np.memmap]) -> tuple[str, ...]:
    return tuple(str(view.filename) for view in views)


def _load(views: Sequence[np.memmap], device: torch.device) -> Float16[Tensor, "VN C h w"]:
    maps = torch.empty(len(views) * len(views[0]), *views[0].shape[1:], dtype=torch.float16, device=device)
    start = 0
    for view in views:
        for chunk in (np.array(view[i : i + CHUNK]) for i in range(0, len(view), CHUNK)):
            maps[start : start + len(chunk)].copy_(torch.from_numpy(chunk))
            start += len(chunk)
    return maps
