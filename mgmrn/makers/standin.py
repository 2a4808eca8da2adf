"""Stand-ins for a benchmark's photographs: pictures made from the real class attributes, for the real lists.

The stand-in of CUB is a benchmark of its own, CUB-standin, whose name labels everything that is made from it. It
exercises 312 attributes or 717 classes where the photographs are missing; no figure measured on it is a result. A
picture is a quilt: every attribute owns one colour channel of one cell, brighter the stronger the class has it.

I images, K of them drawn, U classes, S attributes.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from mgmrn.data.xlsa17 import STANDIN_MARKER, TEST_LISTS, lists_folder, problems_of, read_lists
from mgmrn.errors import UserError
from mgmrn.makers.making import Progress, already_made, draw_all, whole_folder
from mgmrn.makers.xlsa17_writer import write_images_list, write_splits

GENERATOR_VERSION = 2
"""Raised whenever the same options give other pictures or lists."""

_DISJOINT = ("trainval_loc", *TEST_LISTS)
"""The lists that share out the images; train and val only divide the first."""

_Task = tuple[str, int, int]
"""A picture to draw: path below the image root, class, and number in the full list, which seeds it."""

_Edges = tuple[list[int], list[int]]
"""Pixels at which the columns and the rows of a quilt's cells begin, and its ends."""


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
) -> str:
    """Makes the benchmark `<NAME>-standin` in a data root, which may hold others, unless it exists. Returns its name.

    The `.mat` files keep attributes, class names and order; the image lists are restricted to the drawn pictures, whose
    cells are noted in `parts.json` beside them.
    `source_root` holds the real benchmark's `.mat` files and word vectors, but need not hold its images. `per_class` is
    the largest number of images of a class in each of trainval, test_seen and test_unseen (None: all), `size` the side
    of a picture in pixels. The result does not depend on the number of processes that draw. Raises UserError for a
    missing or inconsistent source, and a folder of that name that was made otherwise.
    """
    name = name.upper()
    made = f"{name}-standin"
    options = {"seed": seed, "size": size, "per_class": per_class}
    sources = _source_digests(source_root, name)
    stamp = {"what": "stand-in", "version": GENERATOR_VERSION, "sources": sources, **options}
    if already_made(root / made, STANDIN_MARKER, stamp):
        return made
    folder = str(lists_folder(source_root, name))
    content = read_lists(source_root, name)
    assert content is not None
    if problems := problems_of(content, len(content.attributes)):
        raise UserError(problems[0][1], folder, "`data verify` lists all that is wrong")
    if content.original is None:
        raise UserError("att_splits.mat lacks a matrix original_att", folder, "get it again")
    labels, lists = content.labels, content.lists
    kept, restricted = restrict(lists, labels, per_class)
    tasks: list[_Task] = [(content.files[i], int(labels[i]), int(i)) for i in kept]
    strengths = attribute_strengths(content.original)
    with whole_folder(root / made, STANDIN_MARKER, stamp) as pictures:
        for parent in {(pictures / path).parent for path, _, _ in tasks}:
            parent.mkdir(parents=True, exist_ok=True)
        edges = draw_all(partial(_draw, pictures, strengths, size, seed), tasks, workers, progress)
        cells = {path: found for (path, _, _), found in zip(tasks, edges, strict=True)}
        (pictures / "parts.json").write_text(json.dumps(cells) + "\n", encoding="utf-8")
        layout = lists_folder(root, made)
        write_images_list(layout, [path for path, _, _ in tasks], labels[kept])
        write_splits(layout, content.class_names, content.attributes, content.original, restricted)
        _copy_words(source_root, root, name, made)
    return made


def restrict(
    lists: Mapping[str, Int[np.ndarray, " _"]], labels: Int[np.ndarray, " I"], per_class: int | None
) -> tuple[Int[np.ndarray, " K"], dict[str, Int[np.ndarray, " _"]]]:
    """Indices of the K kept images, ascending, and all given lists in their order, as indices among those K.

    The first `per_class` images of each class in each of trainval, test_seen and test_unseen are kept.
    """
    is_kept = np.zeros(len(labels), dtype=bool)
    for rows in (lists[name] for name in _DISJOINT):
        for label in np.unique(labels[rows]):
            is_kept[rows[labels[rows] == label][:per_class]] = True
    kept = np.flatnonzero(is_kept)
    few = {name: rows[is_kept[rows]] for name, rows in lists.items()}
    # Older files' train list strays into test_seen, from which nothing may be drawn for it.
    few |= {name: rows[np.isin(rows, few["trainval_loc"])] for name, rows in few.items() if name not in _DISJOINT}
    return kept, {name: np.searchsorted(kept, rows) for name, rows in few.items()}


def attribute_strengths(original: Float[np.ndarray, "S U"]) -> Float[np.ndarray, "U S"]:
    """Each class's attributes, stretched over the classes to 0..1; 0.5 where all classes are alike."""
    low, high = original.min(axis=1, keepdims=True), original.max(axis=1, keepdims=True)
    spread = np.where(high > low, high - low, 1.0)
    return np.asarray(np.where(high > low, (original - low) / spread, 0.5).T)


def draw_quilt(
    strengths: Float[np.ndarray, " S"], size: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "H W 3"], _Edges]:
    """A picture of a class with these attribute strengths (0..1): attribute s is channel s mod 3 of cell s div 3.

    Cells run row by row. The generator varies strengths, covered cells, shift of the quilt, exposure and noise.
    """
    side = math.ceil(math.sqrt(math.ceil(len(strengths) / 3)))
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
    across, down = (np.searchsorted(cells, np.arange(side + 1)).tolist() for cells in (columns, rows))
    return np.asarray(np.clip(pixels, 0, 255).astype(np.uint8)), (across, down)


def _draw(folder: Path, strengths: Float[np.ndarray, "U S"], size: int, seed: int, task: _Task) -> _Edges:
    path, label, number = task
    pixels, edges = draw_quilt(strengths[label], size, np.random.default_rng([seed, number]))
    Image.fromarray(pixels).save(folder / path, format="JPEG", quality=92, subsampling=0)
    return edges


def _source_digests(source_root: Path, name: str) -> dict[str, str]:
    """sha256 of each source file, by its path relative to the data root."""
    layout = lists_folder(source_root, name)
    digests = {}
    for path in (layout / "res101.mat", layout / "att_splits.mat", source_root / "w2v" / f"{name}_attribute.pkl"):
        if not path.is_file():
            hint = "stand-ins are drawn from the real lists, splits and word vectors: name a data root that has them"
            raise UserError(f"{name} lacks {path.name}", str(path), hint)
        with path.open("rb") as file:
            digests[str(path.relative_to(source_root))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _copy_words(source_root: Path, root: Path, name: str, made: str) -> None:
    (root / "w2v").mkdir(exist_ok=True)
    shutil.copyfile(source_root / "w2v" / f"{name}_attribute.pkl", root / "w2v" / f"{made}_attribute.pkl")
    names = source_root / "attribute_names" / name
    if names.is_dir():
        target = root / "attribute_names" / made
        shutil.copytree(names, target, copy_function=shutil.copyfile, dirs_exist_ok=True)
