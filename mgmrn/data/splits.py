"""The two splits of the protocol, as two types.

`TuneData` is all that a search, an early stop or a choice of γ may see: it holds no path, label, index or attribute of a test image or of
an unseen class. `FinalData` is for the one evaluation at the end. N images, U classes of the split, S attributes, L word-vector length.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from mgmrn.config import BenchmarkConfig
from mgmrn.data.seal import check_open
from mgmrn.data.xlsa17 import Benchmark, load_benchmark
from mgmrn.errors import UserError


@dataclass(frozen=True)
class Images:
    """Labelled pictures."""

    root: Path
    files: tuple[str, ...]
    """Relative to `root`."""
    labels: Int[np.ndarray, " N"]
    """Classes, as rows of the split's class table."""
    ids: Int[np.ndarray, " N"]
    """Positions in the benchmark's image list."""

    def __len__(self) -> int:
        return len(self.files)

    def path(self, row: int) -> Path:
        """Where a picture stands."""
        return self.root / self.files[row]

    def take(self, rows: Int[np.ndarray, " M"]) -> Images:
        """Some of the pictures, in the order of `rows`."""
        return Images(self.root, tuple(self.files[row] for row in rows), self.labels[rows], self.ids[rows])

    def followed_by(self, other: Images) -> Images:
        """These pictures and then the other ones, of the same data set."""
        assert self.root == other.root
        return Images(
            self.root,
            self.files + other.files,
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.ids, other.ids]),
        )


@dataclass(frozen=True)
class ClassTable:
    """The classes that a split scores."""

    names: tuple[str, ...]
    attributes: Float[np.ndarray, "U S"]
    """Unit rows."""
    seen: Bool[np.ndarray, " U"]

    @property
    def seen_ids(self) -> Int[np.ndarray, " U_s"]:
        """Rows of the seen classes, ascending."""
        return np.flatnonzero(self.seen)


@dataclass(frozen=True)
class TuneData:
    """Train classes as seen, validation classes as unseen; nothing of the test sets."""

    split: ClassVar[Literal["tune"]] = "tune"
    benchmark: str
    digest: str
    """Of the whole data set's lists, labels and attributes."""
    listed: tuple[int, int]
    """Images and classes of the whole data set."""
    standin: bool
    train: Images
    seen: Images
    """Pseudo-seen: the share of each train class that is held out."""
    unseen: Images
    """Pseudo-unseen: the images of the validation classes."""
    classes: ClassTable
    word_vectors: Float[np.ndarray, "S L"]


@dataclass(frozen=True)
class FinalData:
    """All seen classes for training, the test images for the one evaluation."""

    split: ClassVar[Literal["final"]] = "final"
    benchmark: str
    digest: str
    """Of the whole data set's lists, labels and attributes."""
    listed: tuple[int, int]
    """Images and classes of the whole data set."""
    standin: bool
    train: Images
    """trainval."""
    seen: Images
    """test_seen."""
    unseen: Images
    """test_unseen."""
    classes: ClassTable
    word_vectors: Float[np.ndarray, "S L"]

    def __post_init__(self) -> None:
        check_open("the final split")

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_open("the final split")  # What another process has read could be sent here.
        self.__dict__.update(state)


SplitData = TuneData | FinalData


def load_tune(root: Path, config: BenchmarkConfig) -> TuneData:
    """The tuning split.

    Raises:
        UserError: for a broken data set.
    """
    return tune_data(load_benchmark(root, config), config)


def load_final(root: Path, config: BenchmarkConfig) -> FinalData:
    """The final split.

    Raises:
        UserError: for a broken data set.
        SealedError: in a sealed process.
    """
    check_open("the final split")
    return final_data(load_benchmark(root, config))


def tune_data(benchmark: Benchmark, config: BenchmarkConfig) -> TuneData:
    """The tuning split of a data set that was read; copies, so that nothing of it leads back to the rest."""
    train, held_out = hold_out(
        benchmark.lists["train_loc"], benchmark.labels, config.tune_seen_fraction, config.tune_split_seed
    )
    val = benchmark.lists["val_loc"]
    classes = np.unique(benchmark.labels[np.concatenate([train, val])])
    return TuneData(
        benchmark=benchmark.name,
        digest=benchmark.digest,
        listed=(len(benchmark.labels), len(benchmark.class_names)),
        standin=benchmark.standin,
        train=_images(benchmark, train, classes),
        seen=_images(benchmark, held_out, classes),
        unseen=_images(benchmark, val, classes),
        classes=_class_table(benchmark, classes, seen=np.unique(benchmark.labels[train])),
        word_vectors=benchmark.word_vectors,
    )


def final_data(benchmark: Benchmark) -> FinalData:
    """The final split of a data set that was read.

    Raises:
        SealedError: in a sealed process.
    """
    check_open("the final split")
    classes = np.union1d(benchmark.seen_classes, benchmark.unseen_classes)
    return FinalData(
        benchmark=benchmark.name,
        digest=benchmark.digest,
        listed=(len(benchmark.labels), len(benchmark.class_names)),
        standin=benchmark.standin,
        train=_images(benchmark, benchmark.lists["trainval_loc"], classes),
        seen=_images(benchmark, benchmark.lists["test_seen_loc"], classes),
        unseen=_images(benchmark, benchmark.lists["test_unseen_loc"], classes),
        classes=_class_table(benchmark, classes, seen=benchmark.seen_classes),
        word_vectors=benchmark.word_vectors,
    )


def evaluation_images(data: SplitData) -> Images:
    """Seen evaluation images, then unseen ones: the order of all scores."""
    return data.seen.followed_by(data.unseen)


def hold_out(
    images: Int[np.ndarray, " N"], labels: Int[np.ndarray, " I"], fraction: float, seed: int
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " H"]]:
    """Splits images into (kept, held out), class by class: at least one of each where a class has two, both ascending.

    A class with a single image keeps it.
    """
    rng = np.random.default_rng(seed)
    held: list[Int[np.ndarray, " _"]] = []
    for label in np.unique(labels[images]):
        members = np.sort(images[labels[images] == label])
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held.append(rng.permutation(members)[:count])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(images, out), out


def check_images_exist(images: Images) -> None:
    """Looks for every picture, one directory listing per folder.

    Raises:
        UserError: naming the first that is missing and how many are.
    """
    present: dict[str, frozenset[str]] = {}
    missing = 0
    first = ""
    for file in images.files:
        folder, _, name = file.rpartition("/")
        if folder not in present:
            place = images.root / folder
            present[folder] = frozenset(entry.name for entry in place.iterdir()) if place.is_dir() else frozenset()
        if name not in present[folder]:
            missing += 1
            first = first or file
    if missing:
        raise UserError(
            f"{missing} of {len(images)} pictures are not there, the first is {first}",
            str(images.root),
            "put the data set's pictures there, or check --data-root; `data verify` lists all findings",
        )


def _images(benchmark: Benchmark, ids: Int[np.ndarray, " N"], classes: Int[np.ndarray, " U"]) -> Images:
    # Copies: a view would keep the whole benchmark's labels reachable.
    labels = np.searchsorted(classes, benchmark.labels[ids])
    return Images(benchmark.image_root, tuple(benchmark.image_files[i] for i in ids), labels, ids.copy())


def _class_table(benchmark: Benchmark, classes: Int[np.ndarray, " U"], *, seen: Int[np.ndarray, " U_s"]) -> ClassTable:
    table = ClassTable(
        tuple(benchmark.class_names[i] for i in classes), benchmark.attributes[classes].copy(), np.isin(classes, seen)
    )
    if table.seen.all() or not table.seen.any():
        raise UserError(
            f"{benchmark.name} needs seen and unseen classes in each split", "att_splits.mat", "check the image lists"
        )
    return table
