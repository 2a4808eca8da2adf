"""Reads a data set in the xlsa17 "Proposed Splits" layout (Xian et al., TPAMI 2018, arXiv 1707.00600).

    <root>/xlsa17/data/<NAME>/res101.mat        image_files, labels (from 1); features are not read
    <root>/xlsa17/data/<NAME>/att_splits.mat    att (S U), original_att, allclasses_names, the image lists (from 1)
    <root>/w2v/<NAME>_attribute.pkl             word vectors (S L)
    <root>/<NAME>/…                             pictures

I images, U classes, S attributes, L word-vector length. Nothing here opens a picture.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.io import loadmat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.seal import check_open, is_sealed
from mgmrn.errors import UserError

IMAGE_FOLDERS = ("images", "JPEGImages")
"""Where the makers' absolute paths become relative: the folder above one of these is kept (unless it is the data set's own)."""

STANDIN_MARKER = "STANDIN.json"
"""Lies in a data root whose pictures were drawn to stand in for a benchmark's photographs."""

SYNTHETIC_MARKER = "SYNTHETIC.json"
"""Lies in a data root that holds the embedded benchmark."""

DRAWN_MARKERS = (STANDIN_MARKER, SYNTHETIC_MARKER)
"""Stamps of pictures that were drawn, not taken."""

TEST_LISTS = ("test_seen_loc", "test_unseen_loc")
LISTS = ("trainval_loc", "train_loc", "val_loc", *TEST_LISTS)


@dataclass(frozen=True)
class Benchmark:
    """A data set as its files describe it."""

    name: str
    image_root: Path
    image_files: tuple[str, ...]
    """Relative to `image_root`."""
    labels: Int[np.ndarray, " I"]
    """Class of each image, from 0."""
    class_names: tuple[str, ...]
    attributes: Float[np.ndarray, "U S"]
    """Unit rows, float32."""
    word_vectors: Float[np.ndarray, "S L"]
    """float32; a row of zeros is an attribute without a word."""
    lists: Mapping[str, Int[np.ndarray, " _"]]
    """The five image lists, from 0."""
    digest: str
    """sha256 of all of the above."""
    standin: bool
    """Whether the pictures are drawn stand-ins for the real ones."""

    @property
    def seen_classes(self) -> Int[np.ndarray, " U_s"]:
        """Classes with training images, ascending."""
        return np.unique(self.labels[self.lists["trainval_loc"]])

    @property
    def unseen_classes(self) -> Int[np.ndarray, " U_u"]:
        """Classes of the unseen test images, ascending."""
        return np.unique(self.labels[self.lists["test_unseen_loc"]])


def load_benchmark(root: Path, config: BenchmarkConfig) -> Benchmark:
    """Reads and checks a data set's lists, attributes and word vectors.

    Image lists `train_loc` and `val_loc` that are missing, or overlap the test images as in early releases, are rebuilt from `trainval_loc`.
    In a sealed process (see `mgmrn.data.seal`) what comes back is `without_test_sets`.

    Raises:
        UserError: naming the file and what is wrong in it.
    """
    if not root.is_dir():
        raise UserError(
            f"the data root {root} does not exist", "--data-root", "give the folder that holds xlsa17/ and the pictures"
        )
    folder = lists_folder(root, config.name)
    images = _read_mat(folder / "res101.mat", ("image_files", "labels"))
    splits = _read_mat(folder / "att_splits.mat", ("att", "allclasses_names", "trainval_loc", *TEST_LISTS), LISTS)
    labels = read_indices(images["labels"], folder / "res101.mat", "labels")
    files = tuple(relative_image_path(str(name), config.name) for name in read_strings(images["image_files"]))
    class_names = tuple(read_strings(splits["allclasses_names"]))
    attributes = _class_attributes(splits["att"], class_names, folder / "att_splits.mat")
    check_counts(files, labels, class_names, folder)
    word_vectors = load_word_vectors(word_vector_file(root, config))
    if len(word_vectors) != attributes.shape[1]:
        raise UserError(
            f"there are {len(word_vectors)} word vectors for {attributes.shape[1]} attributes",
            str(word_vector_file(root, config)),
            "one row per attribute, in the order of att_splits.mat",
        )
    lists = {
        name: read_indices(splits[name], folder / "att_splits.mat", name, below=len(labels))
        for name in LISTS
        if name in splits
    }
    lists = with_train_and_val(lists, labels, config.tune_split_seed)
    _check_lists(lists, labels, folder / "att_splits.mat")
    benchmark = Benchmark(
        name=config.name,
        image_root=root / config.name,
        image_files=files,
        labels=labels,
        class_names=class_names,
        attributes=attributes,
        word_vectors=word_vectors,
        lists=lists,
        digest=_digest(files, labels, class_names, attributes, word_vectors, lists, _stamps(root)),
        standin=(root / STANDIN_MARKER).exists(),
    )
    return without_test_sets(benchmark) if is_sealed() else benchmark


def without_test_sets(benchmark: Benchmark) -> Benchmark:
    """The data set with empty test lists; all that is known of other images than trainval's, and of their classes, is blanked."""
    known = np.zeros(len(benchmark.labels), dtype=bool)
    known[benchmark.lists["trainval_loc"]] = True
    classes = np.isin(np.arange(len(benchmark.class_names)), benchmark.labels[known])
    nothing = np.zeros(0, dtype=np.int64)
    return replace(
        benchmark,
        image_files=tuple(file if kept else "" for file, kept in zip(benchmark.image_files, known, strict=True)),
        labels=np.where(known, benchmark.labels, -1),
        class_names=tuple(name if kept else "" for name, kept in zip(benchmark.class_names, classes, strict=True)),
        attributes=np.where(classes[:, None], benchmark.attributes, 0),
        lists={name: nothing if name in TEST_LISTS else ids for name, ids in benchmark.lists.items()},
    )


def lists_folder(root: Path, name: str) -> Path:
    """Where a data set's two `.mat` files stand."""
    return root / "xlsa17" / "data" / name


def word_vector_file(root: Path, config: BenchmarkConfig) -> Path:
    """Where a data set's attribute word vectors stand."""
    return root / "w2v" / f"{config.word_vectors or config.name}_attribute.pkl"


def relative_image_path(listed: str, name: str) -> str:
    """Where a listed picture stands below `<root>/<name>`.

    The lists hold absolute paths of the machines that they were made on. Kept is what follows the folder above `images` or `JPEGImages`,
    the last of them, with that folder unless it is named like the data set; a path without such a folder is kept whole when it is relative.

    Raises:
        UserError: for an absolute path without a known folder, or one that leaves the data root.
    """
    path = PurePosixPath(listed.replace("\\", "/"))
    parts = path.parts
    if ".." in parts:
        raise UserError(f"the image list holds a path that leaves the data root: {listed}", "res101.mat image_files")
    for position in reversed(range(len(parts))):
        if parts[position] in IMAGE_FOLDERS:
            keep = position if position == 0 or parts[position - 1] in (name, "/") else position - 1
            return "/".join(parts[keep:])
    if path.is_absolute():
        raise UserError(
            f"no folder named {' or '.join(IMAGE_FOLDERS)} in the listed path {listed}",
            "res101.mat image_files",
            f"list pictures relative to <data root>/{name}",
        )
    return str(path)


def with_train_and_val(
    lists: Mapping[str, Int[np.ndarray, " _"]], labels: Int[np.ndarray, " I"], seed: int
) -> dict[str, Int[np.ndarray, " _"]]:
    """The five lists, with `train_loc` and `val_loc` a partition of `trainval_loc` by classes.

    The published validation classes are kept where they are listed. Where they are not, as many classes as there are unseen ones, but at
    most a third of the seen ones, are drawn.
    """
    trainval = lists["trainval_loc"]
    seen = np.unique(labels[trainval])
    val_classes = np.zeros(0, dtype=np.int64)
    if "val_loc" in lists:
        val_classes = np.intersect1d(labels[lists["val_loc"]], seen)
    elif "train_loc" in lists:
        val_classes = np.setdiff1d(seen, labels[lists["train_loc"]])
    if not 0 < len(val_classes) < len(seen):
        unseen = np.unique(labels[lists["test_unseen_loc"]])
        count = max(1, min(len(unseen), len(seen) // 3))
        val_classes = np.random.default_rng(seed).permutation(seen)[:count]
    in_val = np.isin(labels[trainval], val_classes)
    return {**lists, "train_loc": trainval[~in_val], "val_loc": trainval[in_val]}


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds numpy arrays and nothing else: a pickle can name any function, and this one refuses all but these."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
            *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
            *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def load_word_vectors(path: Path) -> Float[np.ndarray, "S L"]:
    """Attribute word vectors from a pickled numpy array, without running what a pickle may hold.

    Rows of zeros (SUN's "man-made") are kept, with a warning.

    Raises:
        UserError: when the file is missing, is no pickled array of S×L finite numbers, or asks for anything but an array.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError("the attribute word vectors cannot be read", str(path), f"{error.strerror}") from error
    try:
        vectors = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # A malformed pickle raises almost anything.
        raise UserError(
            f"the word vectors are not a plain pickled array: {error}",
            str(path),
            "pickle one numpy array of S×L floats",
        ) from error
    if not (isinstance(vectors, np.ndarray) and vectors.ndim == 2 and vectors.dtype.kind == "f"):
        raise UserError("the word vectors are not an S×L array of floats", str(path))
    if not np.isfinite(vectors).all():
        raise UserError("the word vectors hold NaN or infinite numbers", str(path))
    if empty := np.flatnonzero(~vectors.any(axis=1)).tolist():
        warnings.warn(f"{path}: the word vectors of attributes {empty} (from 0) are all zeros", stacklevel=2)
    return np.ascontiguousarray(vectors, dtype=np.float32)


def read_mat(path: Path, needed: tuple[str, ...], wanted: tuple[str, ...] = ()) -> dict[str, Any]:
    """Some variables of a MATLAB 5 file: those that are needed, and those of the wanted that are there.

    Raises:
        UserError: when the file or a needed variable is missing, or it cannot be read.
        SealedError: in a sealed process, since these files hold the test labels.
    """
    check_open(path.name)
    return _read_mat(path, needed, wanted)


def _read_mat(path: Path, needed: tuple[str, ...], wanted: tuple[str, ...] = ()) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = loadmat(cast(Any, file), variable_names=[*needed, *wanted])
    except FileNotFoundError as error:
        raise UserError(
            f"{path.name} of {path.parent.name} does not exist",
            str(path),
            "put the xlsa17 Proposed Splits below the data root, or check --data-root and benchmark.name",
        ) from error
    except Exception as error:  # scipy raises whatever a broken byte leads to.
        raise UserError(f"{path.name} is not a readable MATLAB 5 file: {error}", str(path), "get it again") from error
    if missing := [name for name in needed if name not in content]:
        raise UserError(f"{path.name} lacks {', '.join(missing)}", str(path), "get the Proposed Splits version of it")
    return content


def read_strings(cells: np.ndarray) -> list[str]:
    """The strings of a MATLAB cell array."""
    return [str(cell[0]) if isinstance(cell, np.ndarray) else str(cell) for cell in cells.ravel()]


def read_indices(column: np.ndarray, path: Path, name: str, below: int | None = None) -> Int[np.ndarray, " _"]:
    """Whole numbers from 1 to indices from 0."""
    values = np.asarray(column).ravel()
    indices = values.astype(np.int64) - 1
    if not np.array_equal(indices + 1, values) or (len(indices) and indices.min() < 0):
        raise UserError(f"{name} holds something other than whole numbers from 1", str(path))
    if below is not None and len(indices) and indices.max() >= below:
        raise UserError(
            f"{name} points to image {indices.max() + 1} of {below}", str(path), "the two .mat files differ"
        )
    return indices


def _class_attributes(att: np.ndarray, class_names: tuple[str, ...], path: Path) -> Float[np.ndarray, "U S"]:
    if att.ndim != 2 or att.shape[1] != len(class_names):
        raise UserError(f"att is {att.shape}, but there are {len(class_names)} class names", str(path), "S×U is needed")
    lengths = np.linalg.norm(att, axis=0)
    if not np.isfinite(att).all() or not lengths.all():
        broken = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
        raise UserError(f"the attributes of class {class_names[broken]} are all zero or not finite", str(path))
    return np.ascontiguousarray((att / lengths).T, dtype=np.float32)


def check_counts(
    files: tuple[str, ...], labels: Int[np.ndarray, " _"], class_names: tuple[str, ...], folder: Path
) -> None:
    """Passes where every image has a label, and every label a class.

    Raises:
        UserError: naming the file in `folder` that does not fit.
    """
    if len(files) != len(labels):
        raise UserError(f"{len(files)} image files but {len(labels)} labels", str(folder / "res101.mat"))
    if len(labels) and labels.max() >= len(class_names):
        raise UserError(
            f"label {labels.max() + 1} is beyond the {len(class_names)} classes of att_splits.mat",
            str(folder / "res101.mat"),
            "the two .mat files are of different data sets",
        )


def _check_lists(lists: Mapping[str, np.ndarray], labels: np.ndarray, path: Path) -> None:
    for name in ("trainval_loc", *TEST_LISTS):
        if not len(lists[name]):
            raise UserError(f"{name} is empty", str(path))
        if len(np.unique(lists[name])) < len(lists[name]):
            raise UserError(f"{name} lists an image twice", str(path))
    for test in TEST_LISTS:
        if shared := np.intersect1d(lists["trainval_loc"], lists[test]).size:
            raise UserError(f"{shared} images are in trainval_loc and in {test}", str(path))
    seen, unseen = (np.unique(labels[lists[name]]) for name in ("trainval_loc", "test_unseen_loc"))
    if shared := np.intersect1d(seen, unseen).size:
        raise UserError(f"{shared} classes of test_unseen_loc are in trainval_loc: they are not unseen", str(path))
    if strangers := np.setdiff1d(labels[lists["test_seen_loc"]], seen).size:
        raise UserError(f"{strangers} classes of test_seen_loc have no image in trainval_loc", str(path))


def _stamps(root: Path) -> bytes:
    """What a maker of drawn pictures wrote of them: lists and splits do not tell pictures of two sizes or seeds apart."""
    files = [root / name for name in DRAWN_MARKERS if (root / name).is_file()]
    return b"".join(file.read_bytes() for file in files)


def _digest(
    files: tuple[str, ...],
    labels: np.ndarray,
    class_names: tuple[str, ...],
    attributes: np.ndarray,
    word_vectors: np.ndarray,
    lists: Mapping[str, np.ndarray],
    stamps: bytes,
) -> str:
    digest = hashlib.sha256(stamps)
    for strings in (files, class_names):
        digest.update("\n".join(strings).encode() + b"\0")
    for array in (labels, attributes, word_vectors, *(lists[name] for name in LISTS)):
        digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.hexdigest()
