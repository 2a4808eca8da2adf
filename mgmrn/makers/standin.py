"""Stand-ins for the photographs of CUB, SUN and AWA2: pictures ruled by the real class attributes, for the real lists.

They exercise a benchmark's 312 attributes or 717 classes where its photographs are missing. A picture is a quilt: every
attribute owns one colour channel of one cell, brighter the stronger the class has it. It resembles no photograph, and
its root carries a marker by which everything that is made from it is labelled; no figure measured on it is a result.
"""

from __future__ import annotations

import hashlib
import io
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from mgmrn.data.xlsa17 import (
    LISTS,
    STANDIN_MARKER,
    TEST_LISTS,
    check_counts,
    lists_folder,
    read_indices,
    read_mat,
    read_strings,
)
from mgmrn.errors import UserError
from mgmrn.makers.making import Progress, Stamp, check_same, draw_all, more_of_a_folder, stamp_to_build_on, whole_folder
from mgmrn.makers.xlsa17_writer import write_images_list, write_splits

GENERATOR_VERSION = 1
"""Raised whenever the same options give other pictures or lists."""


@dataclass(frozen=True)
class ImageFolder:
    """Where a benchmark's images stand."""

    anchor: str
    """In the listed paths; what follows it is kept."""
    folder: str
    """Below the data root."""


IMAGE_FOLDERS: Mapping[str, ImageFolder] = {
    "CUB": ImageFolder("/CUB_200_2011/images/", "CUB/CUB_200_2011/images"),
    "SUN": ImageFolder("/SUN/images/", "SUN/images"),
    "AWA2": ImageFolder("/Animals_with_Attributes2//JPEGImages/", "AWA2/Animals_with_Attributes2/JPEGImages"),
}

_DISJOINT = ("trainval_loc", *TEST_LISTS)
"""The lists that share out the images; train and val only divide the first."""


@dataclass(frozen=True)
class _Benchmark:
    """The real lists, classes and attributes, indices from 0."""

    image_files: tuple[str, ...]
    labels: Int[np.ndarray, " I"]
    class_names: tuple[str, ...]
    attributes: Float[np.ndarray, "S U"]
    original_attributes: Float[np.ndarray, "S U"]
    locations: Mapping[str, Int[np.ndarray, " _"]]


@dataclass(frozen=True)
class _Quilting:
    """One picture to draw: a task that any process can do alone."""

    path: str
    """Below the image folder."""
    label: int
    image: int
    """In the full list, so that a picture is the same whatever else is kept."""


def make_standin(
    name: str,
    source_root: Path,
    root: Path,
    *,
    per_class: int | None = None,
    size: int = 64,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Makes a data root with stand-in pictures for a benchmark, or adds them to one; returns at once when it holds just these.

    The `.mat` files keep attributes, class names and order; image lists and locations are restricted to what is drawn.

    Args:
        name: CUB, SUN or AWA2, in any case.
        source_root: data root with the benchmark's real `.mat` files and word vectors; its images are not needed.
        root: folder to make; absent, empty, or made by this function: for this benchmark with the same options.
        per_class: most images of a class in each of trainval, test_seen and test_unseen; none: all.
        size: side of a picture in pixels.
        seed: decides the pictures.
        workers: processes that draw; the result does not depend on it.
        progress: told after every picture.

    Raises:
        UserError: an unknown benchmark, an option out of bounds, a missing or inconsistent source, a foreign root.
    """
    name = name.upper()
    _check_options(name, per_class, size, seed)
    sources = _sources(source_root, name)
    stamp: dict[str, Any] = {
        "seed": seed,
        "size": size,
        "per_class": per_class,
        "version": GENERATOR_VERSION,
        "sources": {str(path.relative_to(source_root)): _digest(path) for path in sources},
    }
    made = standins(root)
    if name in made:
        check_same(made[name], stamp, root)
        return root
    benchmark = _read(source_root, name)
    kept, locations = restrict(benchmark.locations, benchmark.labels, per_class)
    images = IMAGE_FOLDERS[name]
    tasks = [_Quilting(_below(images, benchmark.image_files[i]), int(benchmark.labels[i]), int(i)) for i in kept]
    strengths = attribute_strengths(benchmark.original_attributes)
    everything = {"what": "stand-in", "benchmarks": {**made, name: stamp}}
    making = (
        more_of_a_folder(root, STANDIN_MARKER, everything, _parts(name))
        if made
        else whole_folder(root, STANDIN_MARKER, everything)
    )
    with making as folder:
        target = folder / images.folder
        for parent in sorted({str(PurePosixPath(task.path).parent) for task in tasks}):
            (target / parent).mkdir(parents=True, exist_ok=True)
        draw_all(partial(_draw, target, strengths, size, seed), tasks, workers, progress)
        layout = lists_folder(folder, name)
        write_images_list(layout, [benchmark.image_files[i] for i in kept], benchmark.labels[kept])
        write_splits(layout, benchmark.class_names, benchmark.attributes, benchmark.original_attributes, locations)
        _copy_words(source_root, folder, name)
    return root


def standins(root: Path) -> dict[str, Stamp]:
    """Benchmark → how its stand-ins in a data root were made; empty for a root that is yet to be made.

    Raises:
        UserError: the folder holds something else, or a marker that this package did not write.
    """
    stamp = stamp_to_build_on(root, STANDIN_MARKER)
    if stamp is None:
        return {}
    found = stamp.get("benchmarks")
    if not isinstance(found, dict):
        place = str(root / STANDIN_MARKER)
        raise UserError("the marker of a stand-in names no benchmarks", place, "delete the folder and make it again")
    return found


def _parts(name: str) -> list[str]:
    """Where a benchmark's files stand in a data root, which it may share; its lists last."""
    images = PurePosixPath(IMAGE_FOLDERS[name].folder).parts[0]
    return [images, f"w2v/{name}_attribute.pkl", f"attribute_names/{name}", f"xlsa17/data/{name}"]


def restrict(
    locations: Mapping[str, Int[np.ndarray, " _"]], labels: Int[np.ndarray, " I"], per_class: int | None
) -> tuple[Int[np.ndarray, " K"], dict[str, Int[np.ndarray, " _"]]]:
    """At most so many images of each class in each of trainval, test_seen and test_unseen, the first of each list.

    Returns:
        Indices of the K images that are kept, ascending, and all given lists in their order, as indices among those K.
    """
    chosen = np.concatenate([_first_of_each(locations[name], labels, per_class) for name in _DISJOINT])
    kept = np.unique(chosen)
    place = np.full(len(labels), -1, dtype=np.int64)
    place[kept] = np.arange(len(kept))
    in_trainval = np.zeros(len(labels), dtype=bool)
    in_trainval[_first_of_each(locations["trainval_loc"], labels, per_class)] = True
    restricted = {}
    for name, indices in locations.items():
        if name in _DISJOINT:
            restricted[name] = place[_first_of_each(indices, labels, per_class)]
        else:
            # Older files' train list strays into test_seen; what is drawn must not.
            restricted[name] = place[indices[in_trainval[indices]]]
    return kept, restricted


def _first_of_each(
    indices: Int[np.ndarray, " _"], labels: Int[np.ndarray, " I"], per_class: int | None
) -> Int[np.ndarray, " _"]:
    if per_class is None:
        return indices
    seen: dict[int, int] = {}
    kept = []
    for index in indices.tolist():
        label = int(labels[index])
        seen[label] = seen.get(label, 0) + 1
        if seen[label] <= per_class:
            kept.append(index)
    return np.asarray(kept, dtype=np.int64)


def attribute_strengths(original: Float[np.ndarray, "S U"]) -> Float[np.ndarray, "U S"]:
    """Each class's attributes, stretched over the classes to 0..1; 0.5 where all classes are alike."""
    low, high = original.min(axis=1, keepdims=True), original.max(axis=1, keepdims=True)
    spread = np.where(high > low, high - low, 1.0)
    return np.asarray(np.where(high > low, (original - low) / spread, 0.5).T)


def draw_quilt(strengths: Float[np.ndarray, " S"], size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """A picture of a class with these attribute strengths (0..1): attribute s is channel s mod 3 of cell s div 3.

    Cells run row by row. The generator adds what differs within a class: strengths, covered cells, shift of the quilt,
    exposure, sensor noise.
    """
    cells = math.ceil(len(strengths) / 3)
    side = math.ceil(math.sqrt(cells))
    shown = np.clip(strengths + rng.normal(0.0, 0.12, len(strengths)), 0.0, 1.0)
    channels = np.zeros(side * side * 3)
    channels[: len(shown)] = 40 + 215 * shown
    quilt = channels.reshape(side * side, 3)
    quilt[rng.random(side * side) < 0.08] = 128
    # Bounds of every cell, moved by up to a third of its width.
    width = size / side
    shift = rng.uniform(-width / 3, width / 3, size=2)
    rows, columns = (np.clip((np.arange(size) + 0.5 + move) / width, 0, side - 1e-6).astype(int) for move in shift)
    pixels = quilt.reshape(side, side, 3)[rows[:, None], columns[None, :]]
    pixels = pixels * rng.uniform(0.85, 1.05) + rng.normal(0.0, 6.0, pixels.shape)
    return np.asarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _draw(folder: Path, strengths: Float[np.ndarray, "U S"], size: int, seed: int, task: _Quilting) -> None:
    rng = np.random.default_rng([seed, task.image])
    encoded = io.BytesIO()
    pixels = draw_quilt(strengths[task.label], size, rng)
    Image.fromarray(pixels).save(encoded, format="JPEG", quality=92, subsampling=0)
    (folder / task.path).write_bytes(encoded.getvalue())


def _check_options(name: str, per_class: int | None, size: int, seed: int) -> None:
    if name not in IMAGE_FOLDERS:
        raise UserError(f"there are no stand-ins for {name}", "name", f"one of {', '.join(IMAGE_FOLDERS)}")
    if per_class is not None and per_class < 1:
        raise UserError(f"per_class must be at least 1, got {per_class}", "per_class")
    if not 32 <= size <= 512:
        raise UserError(f"size must be 32 to 512 pixels, got {size}", "size")
    if seed < 0:
        raise UserError(f"seed must be 0 or more, got {seed}", "seed")


def _sources(source_root: Path, name: str) -> tuple[Path, ...]:
    layout = lists_folder(source_root, name)
    sources = (layout / "res101.mat", layout / "att_splits.mat", source_root / "w2v" / f"{name}_attribute.pkl")
    for path in sources:
        if not path.is_file():
            hint = (
                "a stand-in is drawn from the real lists, splits and word vectors; point to a data root that has them"
            )
            raise UserError(f"{name} lacks {path.name}", str(path), hint)
    return sources


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(source_root: Path, name: str) -> _Benchmark:
    folder = lists_folder(source_root, name)
    images = read_mat(folder / "res101.mat", ("image_files", "labels"))
    splits = read_mat(folder / "att_splits.mat", ("att", "original_att", "allclasses_names", *_DISJOINT), LISTS)
    files = tuple(read_strings(images["image_files"]))
    labels = read_indices(images["labels"], folder / "res101.mat", "labels")
    class_names = tuple(read_strings(splits["allclasses_names"]))
    check_counts(files, labels, class_names, folder)
    return _Benchmark(
        image_files=files,
        labels=labels,
        class_names=class_names,
        attributes=splits["att"],
        original_attributes=splits["original_att"],
        locations={
            key: read_indices(splits[key], folder / "att_splits.mat", key, below=len(files))
            for key in LISTS
            if key in splits
        },
    )


def _below(images: ImageFolder, listed: str) -> str:
    """What follows the anchor in a listed path."""
    _, anchor, path = listed.rpartition(images.anchor)
    if not anchor or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise UserError(f"a listed image is not below {images.anchor}", listed)
    return path


def _copy_words(source_root: Path, folder: Path, name: str) -> None:
    (folder / "w2v").mkdir()
    shutil.copyfile(source_root / "w2v" / f"{name}_attribute.pkl", folder / "w2v" / f"{name}_attribute.pkl")
    names = source_root / "attribute_names" / name
    if names.is_dir():
        shutil.copytree(names, folder / "attribute_names" / name, copy_function=shutil.copyfile)
