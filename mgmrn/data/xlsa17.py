"""Reads a data set in the xlsa17 "Proposed Splits" layout (Xian et al., TPAMI 2018, arXiv 1707.00600).

    <root>/xlsa17/data/<NAME>/res101.mat        image_files, labels (from 1); features are not read
    <root>/xlsa17/data/<NAME>/att_splits.mat    att (S U), original_att, allclasses_names, the image lists (from 1)
    <root>/w2v/<NAME>_attribute.pkl             word vectors (S L)
    <root>/attribute_names/<NAME>/              names of the attributes, for display
    <root>/<NAME>/…                             pictures

I images, U classes, S attributes, L word-vector length. Nothing here opens a picture.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.io import loadmat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.seal import check_open, is_sealed
from mgmrn.errors import UserError, some

IMAGE_FOLDERS = ("images", "JPEGImages")
"""Folders by which `relative_image_path` finds the relative part of a listed path."""

STANDIN_MARKER = "STANDIN.json"
"""Stamp beside the drawn pictures of a stand-in: the options of their drawing."""

SYNTHETIC_MARKER = "SYNTHETIC.json"
"""Stamp at the top of a data root with the embedded benchmark."""

TEST_LISTS = ("test_seen_loc", "test_unseen_loc")
LISTS = ("trainval_loc", "train_loc", "val_loc", *TEST_LISTS)


@dataclass(frozen=True)
class Benchmark:
    """Content of a data set's files."""

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


def load_benchmark(root: Path, config: BenchmarkConfig) -> Benchmark:
    """Reads and checks a data set's lists, attributes and word vectors. Raises UserError with the file that is wrong.

    Image lists `train_loc` and `val_loc` that are missing, or overlap the test images as in early releases, are rebuilt
    from `trainval_loc`. In a sealed process (see `mgmrn.data.seal`) the result is `without_test_sets`.
    """
    if not root.is_dir():
        hint = "give the folder that holds xlsa17/ and the pictures"
        raise UserError(f"the data root {root} does not exist", "--data-root", hint)
    folder = lists_folder(root, config.name)
    splits_file = folder / "att_splits.mat"
    images = _read_mat(folder / "res101.mat", ("image_files", "labels"))
    splits = _read_mat(splits_file, ("att", "allclasses_names", "trainval_loc", *TEST_LISTS), LISTS)
    labels = read_indices(images["labels"], folder / "res101.mat", "labels")
    files = tuple(relative_image_path(listed, config.name) for listed in read_strings(images["image_files"]))
    class_names = tuple(read_strings(splits["allclasses_names"]))
    attributes = _class_attributes(splits["att"], class_names, splits_file)
    check_counts(files, labels, class_names, folder)
    words = word_vector_file(root, config)
    word_vectors = load_word_vectors(words)
    if len(word_vectors) != attributes.shape[1]:
        message = f"there are {len(word_vectors)} word vectors for {attributes.shape[1]} attributes"
        raise UserError(message, str(words), "one row per attribute, in the order of att_splits.mat")
    lists = {name: read_indices(splits[name], splits_file, name, below=len(labels)) for name in LISTS if name in splits}
    lists = with_train_and_val(lists, labels, config.tune_split_seed)
    if problems := list_problems(lists, labels, class_names):
        raise UserError(problems[0], str(splits_file), "`data verify` lists all that is wrong")
    arrays = (lists[name] for name in LISTS)
    benchmark = Benchmark(
        name=config.name,
        image_root=root / config.name,
        image_files=files,
        labels=labels,
        class_names=class_names,
        attributes=attributes,
        word_vectors=word_vectors,
        lists=lists,
        digest=_digest(_stamps(root, config.name), (files, class_names), (labels, attributes, word_vectors, *arrays)),
    )
    return without_test_sets(benchmark) if is_sealed() else benchmark


def without_test_sets(benchmark: Benchmark) -> Benchmark:
    """The data set with empty test lists, and with all data of images and classes outside trainval blanked."""
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
    """Folder of a data set's two `.mat` files."""
    return root / "xlsa17" / "data" / name


def word_vector_file(root: Path, config: BenchmarkConfig) -> Path:
    """File of a data set's attribute word vectors."""
    return root / "w2v" / f"{config.word_vectors or config.name}_attribute.pkl"


def relative_image_path(listed: str, name: str) -> str:
    """Path of a listed picture relative to `<root>/<name>`.

    The published lists hold absolute paths. The result begins with the folder above the last `images` or `JPEGImages`,
    or with that folder itself when the one above is named like the data set. A relative path without such a folder
    stays whole. Raises UserError for an absolute path without such a folder, or one that leaves the data root.
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
        message = f"no folder named {' or '.join(IMAGE_FOLDERS)} in the listed path {listed}"
        raise UserError(message, "res101.mat image_files", f"list pictures relative to <data root>/{name}")
    return str(path)


def with_train_and_val(
    lists: Mapping[str, Int[np.ndarray, " _"]], labels: Int[np.ndarray, " I"], seed: int
) -> dict[str, Int[np.ndarray, " _"]]:
    """The five lists, with `train_loc` and `val_loc` a partition of `trainval_loc` by classes.

    Listed validation classes are kept. Without any, as many classes as there are unseen ones, but at most a third of
    the seen ones, are drawn.
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
    """Unpickler of numpy arrays, which refuses every other function that a pickle names."""

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
    """Attribute word vectors from a pickled numpy array, without running code from the pickle.

    Rows of zeros (SUN's "man-made") are kept, with a warning. Raises UserError for any other content.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError("the attribute word vectors cannot be read", str(path), f"{error.strerror}") from error
    try:
        vectors = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # Malformed pickles raise many kinds of exception.
        hint = "pickle one numpy array of S×L floats"
        raise UserError(f"the word vectors are not a plain pickled array: {error}", str(path), hint) from error
    if not (isinstance(vectors, np.ndarray) and vectors.ndim == 2 and vectors.dtype.kind == "f"):
        raise UserError("the word vectors are not an S×L array of floats", str(path))
    if not np.isfinite(vectors).all():
        raise UserError("the word vectors hold NaN or infinite numbers", str(path))
    if empty := np.flatnonzero(~vectors.any(axis=1)).tolist():
        warnings.warn(f"{path}: the word vectors of attributes {empty} (from 0) are all zeros", stacklevel=2)
    return np.ascontiguousarray(vectors, dtype=np.float32)


def attribute_names(root: Path, config: BenchmarkConfig, count: int) -> tuple[str, ...]:
    """The `count` distinct names of a benchmark's attributes; `attribute 1`, … without a list of that length.

    `attributes.txt` or `predicates.txt` holds a number and a name per line, `attributes.mat` a cell array.
    """
    folder = root / "attribute_names" / (config.word_vectors or config.name)
    texts = (path for path in (folder / "attributes.txt", folder / "predicates.txt") if path.is_file())
    names: list[str] = []
    if path := next(texts, None):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split(maxsplit=1)[-1].strip() for line in lines if line.strip()]
    elif (folder / "attributes.mat").is_file():
        with suppress(Exception):  # scipy raises many kinds of exception on broken bytes.
            cells = loadmat(str(folder / "attributes.mat"))["attributes"]
            names = [name.strip() for name in read_strings(cells)]
    return tuple(names) if len(names) == len(set(names)) == count else numbered_attributes(count)


def numbered_attributes(count: int) -> tuple[str, ...]:
    """Names for attributes that have none."""
    return tuple(f"attribute {number}" for number in range(1, count + 1))


def read_mat(path: Path, needed: tuple[str, ...], wanted: tuple[str, ...] = ()) -> dict[str, Any]:
    """Some variables of a MATLAB 5 file: all of `needed`, and those of `wanted` that it has.

    Raises UserError when a needed one is missing, SealedError in a sealed process: these files hold the test labels.
    """
    check_open(path.name)
    return _read_mat(path, needed, wanted)


def _read_mat(path: Path, needed: tuple[str, ...], wanted: tuple[str, ...] = ()) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = loadmat(cast(Any, file), variable_names=[*needed, *wanted])
    except FileNotFoundError as error:
        hint = "put the xlsa17 Proposed Splits below the data root, or check --data-root and benchmark.name"
        raise UserError(f"{path.name} of {path.parent.name} does not exist", str(path), hint) from error
    except Exception as error:  # scipy raises many kinds of exception on broken bytes.
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
        message = f"{name} points to image {indices.max() + 1} of {below}"
        raise UserError(message, str(path), "the two .mat files differ")
    return indices


def _class_attributes(att: np.ndarray, class_names: tuple[str, ...], path: Path) -> Float[np.ndarray, "U S"]:
    if att.ndim != 2 or att.shape[1] != len(class_names):
        raise UserError(f"att is {att.shape}, but there are {len(class_names)} class names", str(path), "S×U is needed")
    lengths = np.linalg.norm(att, axis=0)
    if not np.isfinite(att).all() or not lengths.all():
        broken = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
        raise UserError(f"the attributes of class {class_names[broken]} are all zero or not finite", str(path))
    return np.ascontiguousarray((att / lengths).T, dtype=np.float32)


def check_counts(files: Sequence[str], labels: Int[np.ndarray, " _"], class_names: Sequence[str], folder: Path) -> None:
    """Raises UserError, with the file in `folder`, for images without a label and labels without a class."""
    if len(files) != len(labels):
        raise UserError(f"{len(files)} image files but {len(labels)} labels", str(folder / "res101.mat"))
    if len(labels) and labels.max() >= len(class_names):
        message = f"label {labels.max() + 1} is beyond the {len(class_names)} classes of att_splits.mat"
        raise UserError(message, str(folder / "res101.mat"), "the two .mat files are of different data sets")


def list_problems(
    lists: Mapping[str, Int[np.ndarray, " _"]], labels: Int[np.ndarray, " I"], class_names: Sequence[str]
) -> list[str]:
    """Violations of the protocol by trainval and the test lists, a phrase each; absent lists violate nothing."""
    present = {name: lists[name] for name in ("trainval_loc", *TEST_LISTS) if name in lists}
    problems = [f"{name} is empty" for name, rows in present.items() if not len(rows)]
    for name, rows in present.items():
        if repeated := len(rows) - len(np.unique(rows)):
            problems.append(f"{name} lists {repeated} images twice")
    for (one, rows), (other, others) in combinations(present.items(), 2):
        if shared := np.intersect1d(rows, others).size:
            problems.append(f"{shared} images are in {one} and in {other}")
    if len(present) == 3:
        seen, test_seen, test_unseen = (np.unique(labels[rows[rows < len(labels)]]) for rows in present.values())
        if both := name_classes(np.intersect1d(seen, test_unseen), class_names):
            problems.append(f"unseen classes are in trainval_loc: {both}")
        if strangers := name_classes(np.setdiff1d(test_seen, seen), class_names):
            problems.append(f"classes of test_seen_loc are not in trainval_loc: {strangers}")
    return problems


def name_classes(classes: Int[np.ndarray, " _"], class_names: Sequence[str]) -> str:
    """The first classes by name, and the count of the others; empty without any."""
    return some([class_names[i] if i < len(class_names) else f"number {i + 1}" for i in classes])


def _stamps(root: Path, name: str) -> bytes:
    """Stamps of drawn pictures: lists and splits do not tell pictures of two sizes or seeds apart."""
    stamps = (root / name / STANDIN_MARKER, root / SYNTHETIC_MARKER)
    return b"".join(stamp.read_bytes() for stamp in stamps if stamp.is_file())


def _digest(stamps: bytes, strings: Sequence[Sequence[str]], arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256(stamps)
    for one in strings:
        digest.update("\n".join(one).encode() + b"\0")
    for array in arrays:
        digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.hexdigest()
