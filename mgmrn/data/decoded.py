"""Decoded pictures, from their files or from a packed store in which each was decoded once.

A store is a folder: `pixels.u8`, the pictures one after the other (h w 3, uint8), and `index.npy`, first byte, height
and width of each. Its pixels are those of the files bit by bit: nothing is resized, except that a large JPEG is decoded
smaller. Processes map it into memory and share its pages. Its name is the digest of all that it depends on; it is
written under a temporary name and renamed when complete, under a file lock. A manifest reveals a damaged store, which
is made again.

N pictures, M of them chosen, h w pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, Int64

from mgmrn.data.kept import Progress, ensure_whole, picture_stamps, written_whole
from mgmrn.data.pictures import Picture, read_picture
from mgmrn.data.splits import Images

FORMAT = 1
WHAT = "packed pictures"
PIXELS, INDEX = "pixels.u8", "index.npy"
CHUNK = 64
"""Decoded pictures in memory that wait to be written."""


@dataclass(frozen=True)
class PictureFiles:
    """Pictures that are decoded each time."""

    images: Images
    at_least: int
    """Least number of pixels of the shorter side; see `read_picture`."""

    @property
    def ids(self) -> Int[np.ndarray, " N"]:
        """Positions in the benchmark's image list."""
        return self.images.ids

    def picture(self, row: int) -> Picture:
        """One picture. Raises UserError when it cannot be decoded."""
        return read_picture(self.images.path(row), at_least=self.at_least)

    def take(self, rows: Int[np.ndarray, " M"]) -> PictureFiles:
        """Some of the pictures, in the order of `rows`."""
        return PictureFiles(self.images.take(rows), self.at_least)


@dataclass(frozen=True)
class PackedPictures:
    """Pictures of a store; pickled as a path and an index."""

    pixels: Path
    index: Int64[np.ndarray, "N 3"]
    """First byte, height and width."""
    ids: Int[np.ndarray, " N"]
    """Positions in the benchmark's image list."""

    def picture(self, row: int) -> Picture:
        """One picture."""
        start, height, width = self.index[row].tolist()
        mapped = np.memmap(self.pixels, dtype=np.uint8, mode="r", offset=start, shape=(height, width, 3))
        return torch.from_numpy(np.array(mapped)).permute(2, 0, 1)

    def take(self, rows: Int[np.ndarray, " M"]) -> PackedPictures:
        """Some of the pictures, in the order of `rows`."""
        return PackedPictures(self.pixels, self.index[rows], self.ids[rows])


Pictures = PictureFiles | PackedPictures


def ensure_packed(
    root: Path, files: PictureFiles, threads: int, progress: Progress = lambda message: None
) -> PackedPictures:
    """Opens the store of some pictures below `root`, and makes it if it is missing or damaged.

    Raises:
        UserError: for a picture that cannot be decoded.
        ResourceError: when the disk has no room for it; nothing is left behind.
    """
    root.mkdir(parents=True, exist_ok=True)
    digest = _digest(files)
    folder = root / f"{digest}-pictures"
    make = partial(_pack, folder, files, threads, progress)
    ensure_whole(WHAT, lambda: {WHAT: folder}, lambda _: make(), root / f"{digest}.lock", progress)
    return PackedPictures(folder / PIXELS, np.load(folder / INDEX), files.ids)


def _digest(files: PictureFiles) -> str:
    images = files.images
    described = [FORMAT, str(images.root.resolve()), picture_stamps(images), files.at_least]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def _pack(folder: Path, files: PictureFiles, threads: int, progress: Progress) -> None:
    remedy = "make room, or set cache_pictures: false"
    with written_whole({WHAT: folder}, WHAT, remedy) as parts, (parts[WHAT] / PIXELS).open("wb") as file:
        index = []
        for picture in _decoded(files, threads, progress):
            index.append((file.tell(), *picture.shape[1:]))
            file.write(picture.permute(1, 2, 0).contiguous().numpy().tobytes())
        np.save(parts[WHAT] / INDEX, np.array(index, dtype=np.int64))


def _decoded(files: PictureFiles, threads: int, progress: Progress) -> Iterator[Picture]:
    count = len(files.ids)
    # Threads are enough: Pillow decodes outside of Python's lock.
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, CHUNK):
            rows = range(start, min(start + CHUNK, count))
            yield from pool.map(files.picture, rows)
            progress(f"packing pictures: {rows.stop} of {count}")
