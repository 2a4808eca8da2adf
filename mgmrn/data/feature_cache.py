"""Maps of a frozen backbone, computed once and shared by all later runs, trials and ablations.

A cache is a folder named by the digest of all that its numbers depend on: the pictures (names, sizes, times of change)
and their order, the transform, the backbone with its weights, and the level. It holds one memory-mapped float16 array N
C h w, and another of the mirrored pictures with flips, so that processes share pages. Runs that differ in their levels
share the levels that they have in common.

It is written under a temporary name and renamed when complete, under a file lock: of several builders one works and the
others wait. A manifest reveals a damaged cache, which is made again. The content is checked once on each host:
afterwards a note beside the folder holds the size and times of change of its files. At every opening they are compared
with the note, and the content is read again when one differs or the host was started again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mgmrn.atomic_file import replacing
from mgmrn.config import BackboneConfig, ImageConfig, Level
from mgmrn.data.episodes import Rows
from mgmrn.data.loading import evaluation_loader, prefetch
from mgmrn.data.splits import Images
from mgmrn.errors import ResourceError, UserError
from mgmrn.manifest import find_damage, write_manifest
from mgmrn.model.backbone import Pyramid, build_backbone
from mgmrn.weights import weights_digest

FORMAT = 2
BATCH = 32
Progress = Callable[[str], None]
"""Called with messages on slow steps."""


@dataclass(frozen=True)
class CachedMaps:
    """Maps of M pictures in memory-mapped, read-only files of N pictures."""

    views: dict[Level, tuple[Float16[np.memmap, "N _ _ _"], ...]]
    """Files of each level: maps C h w of the pictures, and in a cache with flips those of their mirror images."""
    rows: Int[np.ndarray, " M"]

    def take(self, rows: Int[np.ndarray, " _"]) -> CachedMaps:
        """Some of these pictures, in the order of `rows`."""
        return CachedMaps(self.views, self.rows[rows])

    def batches(self, batches: Sequence[Rows], mirrored: Bool[np.ndarray, " M"]) -> Iterator[dict[Level, Tensor]]:
        """Maps of each batch, which holds rows of the M pictures; those that are `mirrored` come as their mirror images."""
        return (self.take(rows).maps(mirrored[rows]) for rows in batches)

    def maps(self, mirrored: Bool[np.ndarray, " M"]) -> dict[Level, Tensor]:
        """Maps `M C h w`, float16, of the pictures or of their mirror images; pinned where a GPU copies them."""
        maps = {level: torch.from_numpy(self._gather(level, mirrored)) for level in self.views}
        return {level: x.pin_memory() for level, x in maps.items()} if torch.cuda.is_available() else maps

    def pooled(self, level: Level) -> Float[np.ndarray, "M C"]:
        """Globally averaged maps, float32."""
        straight = self.views[level][0]
        return np.stack([straight[row].mean(axis=(1, 2), dtype=np.float32) for row in self.rows])

    def _gather(self, level: Level, mirrored: Bool[np.ndarray, " M"]) -> Float16[np.ndarray, "M C h w"]:
        files = self.views[level]
        if not mirrored.any():
            return files[0][self.rows]
        return np.stack([files[mirror][row] for row, mirror in zip(self.rows, mirrored.tolist(), strict=True)])


def ensure_cache(
    root: Path,
    images: Images,
    image_config: ImageConfig,
    backbone_config: BackboneConfig,
    levels: Sequence[Level],
    *,
    flip: bool,
    device: torch.device,
    progress: Progress,
) -> CachedMaps:
    """Opens the maps of `images`, transformed as in evaluation, and computes those that are missing or damaged.

    `root` is the folder of all caches, made if absent; `flip` adds the mirror images. A process that has a damaged cache
    open keeps its files. Raises UserError for a picture that cannot be decoded or weights that do not fit, ResourceError
    when the disk has no room; nothing is left behind.
    """
    assert backbone_config.trainable == "none", "only a frozen backbone's maps can be kept"
    root.mkdir(parents=True, exist_ok=True)
    common = cache_digest(images, image_config, backbone_config)

    def folders() -> dict[Level, Path]:
        return {level: _folder(root, common, level, flip) for level in levels}

    if not _are_usable(list(folders().values())):
        with (root / f"{common}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # The kernel frees it when the process dies.
            for folder in folders().values():
                if folder.is_dir() and not _noted_whole(folder):
                    _check(folder, progress)
            if missing := {level: folder for level, folder in folders().items() if not folder.is_dir()}:
                backbone = build_backbone(backbone_config, list(missing)).to(device).eval()
                _build(missing, images, image_config, backbone, flip, device, progress)
                for folder in missing.values():
                    _note_whole(folder)

    names = _variants(flip)
    views = {
        level: tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names)
        for level, folder in folders().items()
    }
    return CachedMaps(views, np.arange(len(images)))


def remove_check_notes(root: Path) -> None:
    """Removes all notes below `root`: the content of all caches is checked at the next opening."""
    for note in root.glob(".*.whole-*"):
        note.unlink(missing_ok=True)


def cache_digest(images: Images, image_config: ImageConfig, backbone_config: BackboneConfig) -> str:
    """First 24 hex digits with which the caches of all levels of these pictures are named."""
    stamps = [(file, *_size_and_time(images.root / file)) for file in images.files]
    transform = image_config.model_dump(include={"size", "mean", "std", "resize"})
    backbone = [backbone_config.name, weights_digest(backbone_config.weights)]
    described = [FORMAT, str(images.root.resolve()), stamps, transform, backbone]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:24]


def _variants(flip: bool) -> tuple[str, ...]:
    """Names of the files, without their ending."""
    return ("straight", "mirrored") if flip else ("straight",)


def _size_and_time(path: Path) -> tuple[int, int]:
    """Size in bytes and time of change in nanoseconds; −1 for a missing file."""
    try:
        status = path.stat()
    except OSError:
        return (-1, -1)
    return (status.st_size, status.st_mtime_ns)


def _folder(root: Path, common: str, level: Level, flip: bool) -> Path:
    """Folder of a level's cache; one with mirror images also serves runs without flips."""
    with_flips = root / f"{common}-{level}-flips"
    return with_flips if flip or with_flips.is_dir() else root / f"{common}-{level}"


def _are_usable(folders: Sequence[Path]) -> bool:
    """Whether caches are whole; where none can be made and no note be left, by their content."""
    if all(map(_noted_whole, folders)):
        return True
    return not os.access(folders[0].parent, os.W_OK) and not any(map(find_damage, folders))


def _noted_whole(folder: Path) -> bool:
    try:
        return json.loads(_note(folder).read_bytes()) == _stamps(folder)
    except (OSError, ValueError):
        return False


def _note_whole(folder: Path) -> None:
    # Without a note the content is checked again.
    with suppress(OSError), replacing(_note(folder)) as file:
        file.write(json.dumps(_stamps(folder)).encode())


def _note(folder: Path) -> Path:
    """Path of the note of the present host since its start."""
    try:
        host = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # Not on macOS.
        host = platform.node()
    return folder.with_name(f".{folder.name}.whole-{host}")


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Size and times of change of each file. A write changes the last one, which no program can set."""
    stats = {path.name: path.stat() for path in folder.iterdir()}
    return {name: [one.st_size, one.st_mtime_ns, one.st_ctime_ns] for name, one in stats.items()}


def _check(folder: Path, progress: Progress) -> None:
    wrong = find_damage(folder)
    if wrong is None:
        _note_whole(folder)
        return
    progress(f"the cached features in {folder} are damaged ({wrong}): they are removed and made again")
    # Renamed first, so that no process finds it.
    folder.rename(folder.with_name(f".{folder.name}.damaged-{secrets.token_hex(8)}"))
    for left in folder.parent.glob(f".{folder.name}.damaged-*"):
        shutil.rmtree(left, ignore_errors=True)
    for note in folder.parent.glob(f".{folder.name}.whole-*"):
        note.unlink(missing_ok=True)


def _build(
    folders: dict[Level, Path],
    images: Images,
    image_config: ImageConfig,
    backbone: Pyramid,
    flip: bool,
    device: torch.device,
    progress: Progress,
) -> None:
    """Computes all missing levels in one pass over the pictures, in folders that take their names when complete."""
    root = next(iter(folders.values())).parent
    variants = _variants(flip)
    parts = {level: folder.with_name(f".{folder.name}.part") for level, folder in folders.items()}
    arrays: dict[tuple[Level, str], np.memmap] = {}
    stop = 0
    try:
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        for pictures in prefetch(evaluation_loader(images, image_config, BATCH, workers=0)):
            pictures = pictures.to(device, memory_format=torch.channels_last)
            start, stop = stop, stop + len(pictures)
            for variant in variants:
                seen = pictures if variant == "straight" else transforms.horizontal_flip(pictures)
                with torch.inference_mode():
                    maps = backbone(seen)
                shapes = {level: (len(images), *maps[level].shape[1:]) for level in parts}
                arrays = arrays or _allocate(root, parts, variants, shapes)
                for level in parts:
                    block = maps[level].to("cpu", torch.float16).contiguous().numpy()
                    if not np.isfinite(block).all():
                        message = f"the maps of {level} do not fit float16"
                        raise UserError(message, "cache_features", "set cache_features: false")
                    arrays[level, variant][start:stop] = block
            progress(f"caching features: {stop} of {len(images)} pictures")
        for array in arrays.values():
            array.flush()
        for level, part in parts.items():
            write_manifest(part)
            os.replace(part, folders[level])
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_room("do not fit on the disk", root) from error
    finally:
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)


def _allocate(
    root: Path, parts: dict[Level, Path], variants: Sequence[str], shapes: dict[Level, tuple[int, ...]]
) -> dict[tuple[Level, str], np.memmap]:
    """Float16 files with all their blocks: on a full disk a write into a sparse file kills the process (SIGBUS)."""
    needed = sum(2 * int(np.prod(shape)) for shape in shapes.values()) * len(variants)
    if needed > shutil.disk_usage(root).free:
        raise _no_room(f"take {needed / 2**30:.1f} GiB", root)
    arrays: dict[tuple[Level, str], np.memmap] = {}
    for level, part in parts.items():
        for variant in variants:
            path = part / f"{variant}.npy"
            arrays[level, variant] = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shapes[level])
            if hasattr(os, "posix_fallocate"):  # Not on macOS.
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return arrays


def _no_room(demand: str, folder: Path) -> ResourceError:
    free = f"{folder} has {shutil.disk_usage(folder).free / 2**30:.1f} GiB free"
    remedy = "make room, cache fewer levels, or set cache_features: false"
    return ResourceError(f"the cached features {demand}, {free}", remedy)
