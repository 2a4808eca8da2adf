"""The embedded benchmark SYN: forty kinds of drawn creatures in the xlsa17 layout, deterministic by seed.

A zero-shot problem: a class is a vector of probabilities over the values of every trait (`drawing.TRAITS`), a picture
draws one value per trait from it, and the unseen classes are new combinations. A problem for granularity levels:
classes come in families that share the large traits, so that parts of a few pixels decide; all parts and the clutter
behind the creature share one palette, so that the share of a colour in the picture does not tell the part. S
attributes, U classes, I images, V values of a trait, L word-vector length.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from mgmrn.data.seal import check_open
from mgmrn.data.xlsa17 import SYNTHETIC_MARKER, lists_folder
from mgmrn.makers.drawing import LARGE_TRAITS, TRAITS, Creature, draw_creature
from mgmrn.makers.making import Progress, already_made, draw_all, whole_folder
from mgmrn.makers.xlsa17_writer import write_attribute_names, write_images_list, write_splits, write_word_vectors

NAME = "SYN"
GENERATOR_VERSION = 1
"""Raised whenever the same options give other pictures or classes."""

TRAIN_CLASSES, VAL_CLASSES, UNSEEN_CLASSES = 24, 6, 10
CLASSES = TRAIN_CLASSES + VAL_CLASSES + UNSEEN_CLASSES
FAMILIES = 4
TEST_SEEN_FRACTION = 0.2
WORD_VECTOR_LENGTH = 300

ATTRIBUTE_NAMES: tuple[str, ...] = tuple(name for names in TRAITS.values() for name in names)
"""Rows of the attribute matrix: the values of each trait in turn."""

_SMALL_TRAITS = tuple(trait for trait in TRAITS if trait not in LARGE_TRAITS)


@dataclass(frozen=True)
class CreatureClasses:
    """The forty classes, in the order of the attribute matrix's columns."""

    names: tuple[str, ...]
    probabilities: Float[np.ndarray, "S U"]
    """Probability of every attribute in a picture of the class; the values of one trait sum to 1."""
    train: Int[np.ndarray, " _"]
    val: Int[np.ndarray, " _"]
    unseen: Int[np.ndarray, " _"]


_Task = tuple[str, int, int]
"""A picture to draw: path below `SYN/images`, class, and number among the pictures of its class."""

_Drawn = tuple[tuple[str, ...], Mapping[str, Sequence[float]]]
"""Attributes that a picture shows, and the boxes of its parts."""


def make_synthetic(
    root: Path,
    *,
    seed: int = 0,
    per_class: int = 40,
    size: int = 64,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Makes the benchmark as a data root; returns at once when the root already holds it.

    Besides the layout that every loader reads, `SYN/parts.json` holds the attributes that each image shows and the
    boxes of its parts (left, top, right, bottom in pixels), by path relative to `SYN/images`. The result does not depend
    on the number of processes that draw; a fifth of `per_class`, at least 5, is test_seen. Raises UserError for a root with
    other files.
    """
    options = {"seed": seed, "per_class": per_class, "size": size}
    stamp = {"what": "synthetic", "name": NAME, "version": GENERATOR_VERSION, **options}
    if already_made(root, SYNTHETIC_MARKER, stamp):
        return root
    classes = creature_classes(seed)
    tasks = [
        (f"{name}/{name[4:]}_{number:04d}.jpg", label, number)
        # Sorted by folder name as in the published lists.
        for label, name in sorted(enumerate(classes.names), key=lambda item: item[1])
        for number in range(per_class)
    ]
    with whole_folder(root, SYNTHETIC_MARKER, stamp) as folder:
        for name in classes.names:
            (folder / NAME / "images" / name).mkdir(parents=True)
        drawn = draw_all(partial(_draw, folder, classes.probabilities, size, seed), tasks, workers, progress)
        files = [path for path, _, _ in tasks]
        parts = {file: {"attributes": shown, "boxes": boxes} for file, (shown, boxes) in zip(files, drawn, strict=True)}
        (folder / NAME / "parts.json").write_text(json.dumps(parts) + "\n", encoding="utf-8")
        location, raw, labels = lists_folder(folder, NAME), classes.probabilities, np.array([task[1] for task in tasks])
        write_images_list(location, [f"/data/{NAME}/images/{file}" for file in files], labels)
        lists = _lists(classes, labels, per_class, seed)
        write_splits(location, classes.names, raw / np.linalg.norm(raw, axis=0), raw, lists)
        write_word_vectors(folder / "w2v" / f"{NAME}_attribute.pkl", word_vectors(ATTRIBUTE_NAMES))
        write_attribute_names(folder, NAME, [name.replace(" ", "_") for name in ATTRIBUTE_NAMES])
    return root


def creature_classes(seed: int) -> CreatureClasses:
    """The classes of a seed.

    Each split deals the values of each small trait evenly and independently of all other traits: no attribute can be
    learned through another, and none is missing in training. A family shares the large traits. Raises SealedError in a
    sealed process, since the unseen classes are among them.
    """
    check_open("the synthetic benchmark's classes")
    rng = np.random.default_rng([seed, 0xC1A55])
    sizes = (TRAIN_CLASSES, VAL_CLASSES, UNSEEN_CLASSES)
    families = np.concatenate([np.arange(size) % FAMILIES for size in sizes])
    commonest = _commonest_values(sizes, families, rng)
    probabilities = np.concatenate([_trait_probabilities(trait, commonest[trait], rng) for trait in TRAITS])
    # As in the published files, the order of the columns is not that of the folders' numbers.
    order = rng.permutation(CLASSES)
    column = np.argsort(order)
    train, val, unseen = np.split(column, np.cumsum(sizes)[:-1])
    return CreatureClasses(_class_names(rng), probabilities[:, order], np.sort(train), np.sort(val), np.sort(unseen))


def word_vectors(names: Sequence[str]) -> Float[np.ndarray, "S L"]:
    """A vector per attribute name: the mean over its words of gaussian draws seeded by the word.

    Attributes that share a word ("red beak", "red tail") are close, as in vectors learned from text.
    """
    return np.stack([np.mean([_word_vector(word) for word in name.split()], axis=0) for name in names])


def _word_vector(word: str) -> Float[np.ndarray, " L"]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).normal(0.0, 1.0 / np.sqrt(WORD_VECTOR_LENGTH), WORD_VECTOR_LENGTH) * 6.0


def _commonest_values(
    sizes: Sequence[int], families: Int[np.ndarray, " U"], rng: np.random.Generator
) -> dict[str, Int[np.ndarray, " U"]]:
    """Each trait's commonest value in every class; drawn again until any two differ in at least three small traits."""
    large = {trait: rng.permutation(np.arange(FAMILIES) % len(TRAITS[trait]))[families] for trait in LARGE_TRAITS}
    while True:
        small = {
            trait: np.concatenate([rng.permutation(np.arange(size) % len(TRAITS[trait])) for size in sizes])
            for trait in _SMALL_TRAITS
        }
        table = np.stack(list(small.values()))
        differences = (table[:, :, None] != table[:, None, :]).sum(axis=0)
        np.fill_diagonal(differences, len(table))
        if differences.min() >= 3:
            return {**large, **small}


def _trait_probabilities(
    trait: str, commonest: Int[np.ndarray, " U"], rng: np.random.Generator
) -> Float[np.ndarray, "V U"]:
    """Probability of each value in every class: most for the commonest (more so in small traits), the rest at random."""
    count = len(TRAITS[trait])
    low, high = (0.6, 0.8) if trait in LARGE_TRAITS else (0.85, 0.98)
    columns = []
    for value in commonest:
        most = rng.uniform(low, high)
        rest = rng.dirichlet(np.ones(count - 1)) * (1.0 - most)
        columns.append(np.insert(rest, int(value), most))
    return np.stack(columns, axis=1)


_FIRST = ("Ash", "Briar", "Cinder", "Dusk", "Ember", "Fen", "Gorse", "Heath", "Iris", "Juniper")
_SECOND = ("crested", "footed", "throated", "mantled")
_KINDS = ("Quillow", "Tarrin", "Mossbill", "Wendle")


def _class_names(rng: np.random.Generator) -> tuple[str, ...]:
    """Made-up names with numbers in random order; none tells an attribute."""
    plain = [f"{first}_{second}_{kind}" for second, kind in zip(_SECOND, _KINDS, strict=True) for first in _FIRST]
    numbers = rng.permutation(CLASSES)
    return tuple(f"{number + 1:03d}.{plain[number]}" for number in numbers)


def _draw(folder: Path, probabilities: Float[np.ndarray, "S U"], size: int, seed: int, task: _Task) -> _Drawn:
    """Draws and stores one picture, which depends on seed, class and number alone."""
    path, label, number = task
    rng = np.random.default_rng([seed, label, number])
    creature = _sample(probabilities[:, label], rng)
    picture = draw_creature(creature, size, rng)
    # Full chroma: at half resolution the colour of a ring of three pixels would blur.
    Image.fromarray(picture.pixels).save(folder / NAME / "images" / path, format="JPEG", quality=95, subsampling=0)
    boxes = {part: [round(edge, 2) for edge in box] for part, box in picture.boxes.items()}
    return tuple(creature.values.values()), boxes


def _sample(probabilities: Float[np.ndarray, " S"], rng: np.random.Generator) -> Creature:
    """A creature of a class: each trait's value drawn with the class's probabilities."""
    values = {}
    start = 0
    for trait, names in TRAITS.items():
        share = np.cumsum(probabilities[start : start + len(names)])
        values[trait] = names[min(int(np.searchsorted(share, rng.random(), side="right")), len(names) - 1)]
        start += len(names)
    return Creature(values)


def _lists(
    classes: CreatureClasses, labels: Int[np.ndarray, " I"], per_class: int, seed: int
) -> dict[str, Int[np.ndarray, " _"]]:
    """The five image lists, from 0: a fifth of each seen class is test_seen; train and val part trainval by class."""
    rng = np.random.default_rng([seed, 0x5711])
    held_out = round(per_class * TEST_SEEN_FRACTION)
    seen = [rng.permutation(np.flatnonzero(labels == label)) for label in np.concatenate([classes.train, classes.val])]
    trainval = rng.permutation(np.concatenate([images[held_out:] for images in seen]))
    of_val = np.isin(labels[trainval], classes.val)
    return {
        "trainval_loc": trainval,
        "test_seen_loc": rng.permutation(np.concatenate([images[:held_out] for images in seen])),
        "train_loc": trainval[~of_val],
        "val_loc": trainval[of_val],
        "test_unseen_loc": np.flatnonzero(np.isin(labels, classes.unseen)),
    }
