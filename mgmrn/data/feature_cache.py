"""Maps of a frozen backbone, computed once and shared by all later runs, trials and ablations.

A cache is a folder named by the digest of everything that its numbers depend on: the pictures (names, sizes, times of change) and their order,
the transform, the backbone with its weights, and the level. It holds one memory-mapped float16 array N C h w per level, and
one more of the mirrored pictures where flips are wanted, so that processes share pages and copy nothing. Digests are per level: two runs that
differ in their levels share what they have in common.

It is written beside its place and renamed when complete, under a file lock: of several builders one works and the others wait for
its result, and what a killed builder leaves is never taken for a cache. A manifest tells a damaged cache, which is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mgmrn.config import BackboneConfig, ImageConfig, Level
from mgmrn.data.decoded import PictureFiles
from mgmrn.data.images import side_for_evaluation
from mgmrn.data.kept import FULL, Progress, ensure_whole, no_room, picture_stamps
from mgmrn.data.loading import evaluation_loader, prefetch
from mgmrn.data.splits import Images
from mgmrn.errors import UserError
from mgmrn.manifest import write_manifest
from mgmrn.model.backbone import Pyramid, build_backbone
from mgmrn.weights import weights_digest

FORMAT = 2
WHAT = "cached features"
REMEDY = "make room, cache fewer levels, or set cache_features: false"
BATCH = 32


@dataclass(frozen=True)
class LevelStore:
    """One level's maps of all pictures."""

    straight: Float16[np.ndarray, "N C h w"]
    mirrored: Float16[np.ndarray, "N C h w"] | None


@dataclass(frozen=True)
class FeatureCache:
    """Memory-mapped, read-only maps of a list of pictures."""

    stores: dict[Level, LevelStore]

    def maps(self, rows: Int[np.ndarray, " B"], mirrored: Bool[np.ndarray, " B"]) -> dict[Level, Tensor]:
        """Maps `B C h w`, float16, of some pictures.

        Args:
            rows: which pictures.
            mirrored: which of them as mirror images; needs a cache with flips.
        """
        return {level: torch.from_numpy(_gather(store, rows, mirrored)) for level, store in self.stores.items()}

    def pooled(self, level: Level) -> Float[np.ndarray, "N C"]:
        """Globally averaged maps of all pictures, float32."""
        straight = self.stores[level].straight
        return np.stack([maps.mean(axis=(1, 2), dtype=np.float32) for maps in straight])


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
) -> FeatureCache:
    """Opens the maps of `images`, computing what is not there yet.

    Args:
        root: folder of all caches; made where it is missing.
        images: pictures, in the order of the rows.
        image_config: their transform; always that of evaluation.
        backbone_config: a frozen backbone; a weights file is identified by its bytes.
        levels: which maps.
        flip: whether mirror images are wanted too.
        device: where the backbone runs.
        progress: told how far it is.

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

    found = ensure_whole(WHAT, folders, make, root / f"{common}.lock", progress)
    return FeatureCache({level: _open(folder, flip) for level, folder in found.items()})


def _common_digest(images: Images, image_config: ImageConfig, backbone_config: BackboneConfig) -> str:
    digest = hashlib.sha256()
    transform = image_config.model_dump(include={"size", "mean", "std", "resize"})
    backbone = [backbone_config.name, weights_digest(backbone_config.weights)]
    digest.update(
        json.dumps(
            [FORMAT, str(images.root.resolve()), picture_stamps(images), transform, backbone], sort_keys=True
        ).encode()
    )
    return digest.hexdigest()[:24]


def _folder(root: Path, common: str, level: Level, flip: bool) -> Path:
    """A cache with mirror images serves those who want none too."""
    with_flips = root / f"{common}-{level}-flips"
    return with_flips if flip or with_flips.is_dir() else root / f"{common}-{level}"


def _open(folder: Path, flip: bool) -> LevelStore:
    return LevelStore(
        np.load(folder / "straight.npy", mmap_mode="r"),
        np.load(folder / "mirrored.npy", mmap_mode="r") if flip else None,
    )


def _gather(store: LevelStore, rows: np.ndarray, mirrored: np.ndarray) -> Float16[np.ndarray, "B C h w"]:
    if not mirrored.any():
        return store.straight[rows]
    assert store.mirrored is not None, "the cache holds no mirror images"
    out = np.empty((len(rows), *store.straight.shape[1:]), dtype=np.float16)
    for place, (row, mirror) in enumerate(zip(rows, mirrored, strict=True)):
        out[place] = store.mirrored[row] if mirror else store.straight[row]
    return out


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
    parts = {level: folder.with_name(f".{folder.name}.part") for level, folder in folders.items()}
    variants = ("straight", "mirrored") if flip else ("straight",)
    try:
        writers = _Writers(parts, variants, len(images))
        for start, pictures in _batches(images, image_config):
            pictures = pictures.to(device, memory_format=torch.channels_last)
            for variant in variants:
                seen = pictures if variant == "straight" else transforms.horizontal_flip(pictures)
                with torch.inference_mode():
                    writers.write(variant, start, backbone(seen))
            progress(f"caching features: {start + len(pictures)} of {len(images)} pictures")
        writers.close()
        for level, part in parts.items():
            write_manifest(part)
            os.replace(part, folders[level])
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise no_room(WHAT, None, next(iter(folders.values())).parent, REMEDY) from error
    finally:
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)


def _batches(images: Images, image_config: ImageConfig) -> Iterator[tuple[int, Tensor]]:
    files = PictureFiles(images, side_for_evaluation(image_config))
    pictures = prefetch(evaluation_loader(files, image_config, BATCH, workers=0))
    return ((number * BATCH, batch) for number, batch in enumerate(pictures))


class _Writers:
    """Files that are filled batch by batch; made when the first batch has shown the shapes."""

    def __init__(self, parts: dict[Level, Path], variants: Sequence[str], count: int) -> None:
        self._parts, self._variants, self._count = parts, variants, count
        self._arrays: dict[tuple[Level, str], np.memmap] = {}

    def write(self, variant: str, start: int, maps: dict[Level, Tensor]) -> None:
        if not self._arrays:
            self._create({level: tuple(maps[level].shape[1:]) for level in self._parts})
        for level in self._parts:
            block = maps[level].to("cpu", torch.float16).contiguous().numpy()
            if not np.isfinite(block).all():
                raise UserError(
                    f"the maps of {level} do not fit float16", "cache_features", "set cache_features: false"
                )
            self._arrays[level, variant][start : start + len(block)] = block

    def _create(self, shapes: dict[Level, tuple[int, ...]]) -> None:
        needed = sum(self._count * int(np.prod(shape)) * 2 * len(self._variants) for shape in shapes.values())
        folder = next(iter(self._parts.values())).parent
        if needed > shutil.disk_usage(folder).free:
            raise no_room(WHAT, needed, folder, REMEDY)
        for level, shape in shapes.items():
            shutil.rmtree(self._parts[level], ignore_errors=True)
            self._parts[level].mkdir()
            for variant in self._variants:
                self._arrays[level, variant] = _allocated(self._parts[level] / f"{variant}.npy", (self._count, *shape))

    def close(self) -> None:
        for array in self._arrays.values():
            array.flush()


def _allocated(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A float16 file with all its blocks: on a full disk a write into a sparse one kills the process (SIGBUS)."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    if hasattr(os, "posix_fallocate"):  # Not on macOS.
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
