"""The two splits of the protocol, as two types.

A search, an early stop or a choice of γ reads `TuneData` alone, which holds no path, label, index or attribute of a
test image or of an unseen class. `FinalData` serves the one evaluation at the end. N images, U classes of the split, S
attributes, L word-vector length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

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
        return self.root / self.files[row]

    def take(self, rows: Int[np.ndarray, " M"]) -> Images:
        """Some of the pictures, in the order of `rows`."""
        return Images(self.root, tuple(self.files[row] for row in rows), self.labels[rows], self.ids[rows])

    def followed_by(self, other: Images) -> Images:
        """These pictures and then the other ones, of the same data set."""
        assert self.root == other.root
        labels, ids = np.concatenate([self.labels, other.labels]), np.concatenate([self.ids, other.ids])
        return Images(self.root, self.files + other.files, labels, ids)


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
class _Split:
    benchmark: str
    digest: str
    """sha256 of the whole data set's lists, labels and attributes."""
    listed: tuple[int, int]
    """Images and classes of the whole data set."""
    train: Images
    seen: Images
    """Evaluation images of seen classes."""
    unseen: Images
    """Evaluation images of unseen classes."""
    classes: ClassTable
    word_vectors: Float[np.ndarray, "S L"]


@dataclass(frozen=True)
class TuneData(_Split):
    """Train classes as seen, validation classes as unseen; a share of each train class is held out as `seen`."""

    split: ClassVar[Literal["tune"]] = "tune"


@dataclass(frozen=True)
class FinalData(_Split):
    """trainval for training, test_seen and test_unseen for the one evaluation."""

    split: ClassVar[Literal["final"]] = "final"

    def __post_init__(self) -> None:
        check_open("the final split")

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_open("the final split")  # Another process may have read and sent it.
        self.__dict__.update(state)


SplitData = TuneData | FinalData
Split = TypeVar("Split", TuneData, FinalData)


def load_tune(root: Path, config: BenchmarkConfig) -> TuneData:
    """The tuning split. Raises UserError for a broken data set."""
    return tune_data(load_benchmark(root, config), config)


def load_final(root: Path, config: BenchmarkConfig) -> FinalData:
    """The final split. Raises UserError for a broken data set, SealedError in a sealed process."""
    check_open("the final split")
    return final_data(load_benchmark(root, config))


def tune_data(benchmark: Benchmark, config: BenchmarkConfig) -> TuneData:
    """The tuning split of a loaded data set; copies, so that nothing of it leads back to the rest."""
    lists, labels = benchmark.lists, benchmark.labels
    train, held_out = hold_out(lists["train_loc"], labels, config.tune_seen_fraction, config.tune_split_seed)
    return _split(TuneData, benchmark, train, held_out, lists["val_loc"])


def final_data(benchmark: Benchmark) -> FinalData:
    """The final split of a loaded data set. Raises SealedError in a sealed process."""
    check_open("the final split")
    lists = benchmark.lists
    return _split(FinalData, benchmark, lists["trainval_loc"], lists["test_seen_loc"], lists["test_unseen_loc"])


def evaluation_images(data: SplitData) -> Images:
    """Seen evaluation images, then unseen ones: the order of all scores."""
    return data.seen.followed_by(data.unseen)


def hold_out(
    images: Int[np.ndarray, " N"], labels: Int[np.ndarray, " I"], fraction: float, seed: int
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " H"]]:
    """Splits images into (kept, held out), both ascending, class by class; each part gets at least one of two images."""
    rng = np.random.default_rng(seed)
    held: list[Int[np.ndarray, " _"]] = []
    for label in np.unique(labels[images]):
        members = np.sort(images[labels[images] == label])
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held.append(rng.permutation(members)[:count])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(images, out), out


def existing(root: Path, files: Sequence[str]) -> set[str]:
    """The files that exist below a folder, by one directory listing per parent folder."""
    parents = {file.rpartition("/")[0] for file in files}
    return {
        f"{parent}/{entry.name}" if parent else entry.name for parent in parents for entry in (root / parent).glob("*")
    }


def check_images_exist(images: Images) -> None:
    """Raises UserError when pictures are missing; the error counts them and names the first."""
    present = existing(images.root, images.files)
    if missing := [file for file in images.files if file not in present]:
        message = f"{len(missing)} of {len(images)} pictures are not there, the first is {missing[0]}"
        hint = "put the data set's pictures there, or check --data-root; `data verify` lists all findings"
        raise UserError(message, str(images.root), hint)


def _split(
    kind: type[Split],
    benchmark: Benchmark,
    train: Int[np.ndarray, " _"],
    seen: Int[np.ndarray, " _"],
    unseen: Int[np.ndarray, " _"],
) -> Split:
    labels = benchmark.labels
    classes = np.unique(labels[np.concatenate([train, unseen])])
    seen_classes = np.isin(classes, labels[train])
    if seen_classes.all() or not seen_classes.any():
        message = f"{benchmark.name} needs seen and unseen classes in each split"
        raise UserError(message, "att_splits.mat", "check the image lists")

    names = tuple(benchmark.class_names[i] for i in classes)

    def images(ids: Int[np.ndarray, " _"]) -> Images:
        # Copies: a view would keep the whole benchmark's labels reachable.
        rows = np.searchsorted(classes, labels[ids])
        return Images(benchmark.image_root, tuple(benchmark.image_files[i] for i in ids), rows, ids.copy())

    return kind(
        benchmark=benchmark.name,
        digest=benchmark.digest,
        listed=(len(labels), len(benchmark.class_names)),
        train=images(train),
        seen=images(seen),
        unseen=images(unseen),
        classes=ClassTable(names, benchmark.attributes[classes].copy(), seen_classes),
        word_vectors=benchmark.word_vectors,
    )
