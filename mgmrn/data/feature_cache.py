"""Maps of a frozen backbone, computed once and shared by all later runs, trials and ablations.

A cache is a folder named by the digest of all that its numbers depend on: the pictures (names, sizes, times of change)
and their order, the transform, the backbone with its weights, and the level. It holds one memory-mapped float16 array N
C h w, and another of the mirrored pictures with flips, so that processes share pages. Runs that differ in their levels
share the levels that they have in common.

It is written under a temporary name and renamed when complete, under a file lock: of several builders one works and the
others wait. A manifest reveals a damaged cache, which is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mgmrn.config import BackboneConfig, ImageConfig, Level
from mgmrn.data.images import side_for_evaluation
from mgmrn.data.kept import Progress, ensure_whole, no_room, picture_stamps, written_whole
from mgmrn.data.loading import PictureFiles, evaluation_loader, prefetch
from mgmrn.data.splits import Images
from mgmrn.errors import UserError
from mgmrn.model.backbone import Pyramid, build_backbone
from mgmrn.weights import weights_digest

FORMAT = 2
BATCH = 32
VARIANTS = ("straight", "mirrored")
"""Names of the files, without their ending."""


@dataclass(frozen=True)
class CachedMaps:
    """Maps of M pictures in memory-mapped, read-only files of N pictures."""

    straight: dict[Level, Float16[np.ndarray, "N _ _ _"]]
    """Maps C h w of each level."""
    mirrored: dict[Level, Float16[np.ndarray, "N _ _ _"]]
    """Maps of the mirror images; empty in a cache without flips."""
    rows: Int[np.ndarray, " M"]

    def take(self, rows: Int[np.ndarray, " _"]) -> CachedMaps:
        """Some of these pictures, in the order of `rows`."""
        return CachedMaps(self.straight, self.mirrored, self.rows[rows])

    def maps(self, mirrored: Bool[np.ndarray, " M"]) -> dict[Level, Tensor]:
        """Maps `M C h w`, float16, of the pictures or of their mirror images; pinned where a GPU copies them."""
        maps = {level: torch.from_numpy(self._gather(level, mirrored)) for level in self.straight}
        return {level: x.pin_memory() for level, x in maps.items()} if torch.cuda.is_available() else maps

    def pooled(self, level: Level) -> Float[np.ndarray, "M C"]:
        """Globally averaged maps, float32."""
        straight = self.straight[level]
        return np.stack([straight[row].mean(axis=(1, 2), dtype=np.float32) for row in self.rows])

    def _gather(self, level: Level, mirrored: Bool[np.ndarray, " M"]) -> Float16[np.ndarray, "M C h w"]:
        straight = self.straight[level]
        if not mirrored.any():
            return straight[self.rows]
        out = np.empty((len(self.rows), *straight.shape[1:]), dtype=np.float16)
        for place, (row, mirror) in enumerate(zip(self.rows, mirrored, strict=True)):
            out[place] = self.mirrored[level][row] if mirror else straight[row]
        return out


def ensure_cache(
    root: Path,
    images: Images,
    image_config: ImageConfig,
    backbone_config: BackboneConfig,
    levels: Sequence[Level],
    *,
    flip: bool,
    device: torch.device,
    progress: Progress = lambda message: None,
) -> CachedMaps:
    """Opens the maps of `images`, transformed as in evaluation, and computes those that are missing or damaged.

    `root` is the folder of all caches, made if absent; `flip` adds the mirror images.

    Raises:
        UserError: for a picture that cannot be decoded, or weights that do not fit.
        ResourceError: when the disk has no room for it; nothing is left behind.
    """
    assert backbone_config.trainable == "none", "only a frozen backbone's maps can be kept"
    root.mkdir(parents=True, exist_ok=True)
    common = _common_digest(images, image_config, backbone_config)

    def folders() -> dict[Level, Path]:
        return {level: _folder(root, common, level, flip) for level in levels}

    def make(missing: list[Level]) -> None:
        places = folders()
        backbone = build_backbone(backbone_config, missing).to(device).eval()
        _build({level: places[level] for level in missing}, images, image_config, backbone, flip, device, progress)

    found = ensure_whole(folders, make, root / f"{common}.lock", progress)
    straight, mirrored = (
        {level: np.load(folder / f"{variant}.npy", mmap_mode="r") for level, folder in found.items()}
        if flip or variant == "straight"
        else {}
        for variant in VARIANTS
    )
    return CachedMaps(straight, mirrored, np.arange(len(images)))


def _common_digest(images: Images, image_config: ImageConfig, backbone_config: BackboneConfig) -> str:
    transform = image_config.model_dump(include={"size", "mean", "std", "resize"})
    backbone = [backbone_config.name, weights_digest(backbone_config.weights)]
    described = [FORMAT, str(images.root.resolve()), picture_stamps(images), transform, backbone]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:24]


def _folder(root: Path, common: str, level: Level, flip: bool) -> Path:
    """Folder of a level's cache; one with mirror images also serves runs without flips."""
    with_flips = root / f"{common}-{level}-flips"
    return with_flips if flip or with_flips.is_dir() else root / f"{common}-{level}"


def _build(
    folders: dict[Level, Path],
    images: Images,
    image_config: ImageConfig,
    backbone: Pyramid,
    flip: bool,
    device: torch.device,
    progress: Progress,
) -> None:
    """Computes all missing levels in one pass over the pictures; each picture is decoded once."""
    variants = VARIANTS if flip else VARIANTS[:1]
    arrays: dict[tuple[Level, str], np.memmap] = {}
    with written_whole(folders) as parts:
        files = PictureFiles(images, side_for_evaluation(image_config))
        stop = 0
        for pictures in prefetch(evaluation_loader(files, image_config, BATCH, workers=0)):
            pictures = pictures.to(device, memory_format=torch.channels_last)
            start, stop = stop, stop + len(pictures)
            for variant in variants:
                seen = pictures if variant == "straight" else transforms.horizontal_flip(pictures)
                with torch.inference_mode():
                    maps = backbone(seen)
                arrays = arrays or _allocate(
                    parts, variants, {level: (len(images), *maps[level].shape[1:]) for level in parts}
                )
                for level in parts:
                    arrays[level, variant][start:stop] = _as_float16(level, maps[level])
            progress(f"caching features: {stop} of {len(images)} pictures")
        for array in arrays.values():
            array.flush()


def _as_float16(level: Level, maps: Float[Tensor, "B C h w"]) -> Float16[np.ndarray, "B C h w"]:
    block = maps.to("cpu", torch.float16).contiguous().numpy()
    if not np.isfinite(block).all():
        raise UserError(f"the maps of {level} do not fit float16", "cache_features", "set cache_features: false")
    return block


def _allocate(
    parts: dict[Level, Path], variants: Sequence[str], shapes: dict[Level, tuple[int, ...]]
) -> dict[tuple[Level, str], np.memmap]:
    """Float16 files with all their blocks: on a full disk a write into a sparse file kills the process (SIGBUS)."""
    needed = sum(2 * int(np.prod(shape)) for shape in shapes.values()) * len(variants)
    folder = next(iter(parts.values())).parent
    if needed > shutil.disk_usage(folder).free:
        raise no_room(needed, folder)
    arrays: dict[tuple[Level, str], np.memmap] = {}
    for level, part in parts.items():
        for variant in variants:
            path = part / f"{variant}.npy"
            arrays[level, variant] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shapes[level])
            if hasattr(os, "posix_fallocate"):  # Not on macOS.
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return arrays
