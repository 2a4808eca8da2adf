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
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mgmrn.config import BenchmarkConfig
from mgmrn.data.matrices import mat_indices, mat_matrix, mat_strings, read_mat, read_pickled_array, without_direction
from mgmrn.data.seal import check_open, is_sealed
from mgmrn.errors import UserError, some
from mgmrn.reading import text_lines

IMAGE_FOLDERS = ("images", "JPEGImages")
"""Folders by which `relative_image_path` finds the relative part of a listed path."""

STANDIN_MARKER = "STANDIN.json"
"""Stamp beside the drawn pictures of a stand-in: the options of their drawing."""

SYNTHETIC_MARKER = "SYNTHETIC.json"
"""Stamp at the top of a data root with the embedded benchmark."""

TEST_LISTS = ("test_seen_loc", "test_unseen_loc")
LISTS = ("trainval_loc", "train_loc", "val_loc", *TEST_LISTS)


@dataclass(frozen=True)
class Lists:
    """Content of a data set's two `.mat` files."""

    files: tuple[str, ...]
    """Relative to `<root>/<name>`."""
    labels: Int[np.ndarray, " I"]
    """From 0."""
    class_names: tuple[str, ...]
    attributes: Float[np.ndarray, "S ..."]
    original: Float[np.ndarray, "S ..."] | None
    """`original_att`; None where it is missing or unusable."""
    lists: Mapping[str, Int[np.ndarray, " _"]]
    """From 0; those that are there and in range."""


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
    content = _read_lists(root, config.name, plainly)
    assert content is not None
    word_vectors = load_word_vectors(word_vector_file(root, config))
    if problems := problems_of(content, len(word_vectors)):
        where = str(lists_folder(root, config.name))
        raise UserError(problems[0][1], where, "`data verify` lists all that is wrong")
    unit = (content.attributes / np.linalg.norm(content.attributes, axis=0)).T
    benchmark = Benchmark(
        name=config.name,
        image_root=root / config.name,
        image_files=content.files,
        labels=content.labels,
        class_names=content.class_names,
        attributes=np.ascontiguousarray(unit, dtype=np.float32),
        word_vectors=word_vectors,
        lists=with_train_and_val(content.lists, content.labels, config.tune_split_seed),
        digest="",
    )
    benchmark = replace(benchmark, digest=_digest(benchmark, root))
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


def load_word_vectors(path: Path) -> Float[np.ndarray, "S L"]:
    """Attribute word vectors from a pickled numpy array, without running code from the pickle.

    Rows of zeros (SUN's "man-made") are kept, with a warning. Raises UserError for any other content.
    """
    vectors = read_pickled_array(path, "array of word vectors")
    if empty := np.flatnonzero(~vectors.any(axis=1)).tolist():
        warnings.warn(f"{path}: the word vectors of attributes {empty} (from 0) are all zeros", stacklevel=2)
    return vectors


def attribute_names(root: Path, config: BenchmarkConfig, count: int) -> tuple[str, ...]:
    """The `count` distinct names of a benchmark's attributes; `attribute 1`, … without a list of that length.

    `attributes.txt` or `predicates.txt` holds a number and a name per line, `attributes.mat` a cell array.
    """
    folder = root / "attribute_names" / (config.word_vectors or config.name)
    texts = (path for path in (folder / "attributes.txt", folder / "predicates.txt") if path.is_file())
    names: list[str] = []
    with suppress(UserError):
        if path := next(texts, None):
            lines = text_lines(path, "list of attributes", "write a number and a name a line")
            names = [line.split(maxsplit=1)[-1].strip() for line in lines if line.strip()]
        elif (file := folder / "attributes.mat").is_file():
            names = mat_strings(read_mat(file, ("attributes",))["attributes"], file, "attributes")
            names = [name.strip() for name in names]
    return tuple(names) if len(names) == len(set(names)) == count else numbered_attributes(count)


def numbered_attributes(count: int) -> tuple[str, ...]:
    """Names for attributes that have none."""
    return tuple(f"attribute {number}" for number in range(1, count + 1))


def plainly(check: str, read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` returns; its errors are not caught."""
    return read(*arguments)


def read_lists(root: Path, name: str, attempt: Callable[..., Any] = plainly) -> Lists | None:
    """Content of a data set's two `.mat` files, or None when parts cannot be read.

    `attempt` calls each reader, after the name of a check, and may answer its error with None. Raises UserError for what
    cannot be read, and SealedError in a sealed process: these files hold the test labels.
    """
    check_open(f"the lists of {name}")
    return _read_lists(root, name, attempt)


def _read_lists(root: Path, name: str, attempt: Callable[..., Any]) -> Lists | None:
    images_file, splits_file = (lists_folder(root, name) / file for file in ("res101.mat", "att_splits.mat"))
    needed = ("att", "allclasses_names", "trainval_loc", *TEST_LISTS)
    images = attempt(images_file.name, read_mat, images_file, ("image_files", "labels"))
    splits = attempt(splits_file.name, read_mat, splits_file, needed, ("original_att", *LISTS))
    if images is None or splits is None:
        return None
    listed = attempt("image paths", mat_strings, images["image_files"], images_file, "image_files")
    labels = attempt("labels", mat_indices, images["labels"], images_file, "labels")
    class_names = attempt("class names", mat_strings, splits["allclasses_names"], splits_file, "allclasses_names")
    attributes = attempt("attributes", mat_matrix, splits["att"], splits_file, "att")
    if listed is None or labels is None or class_names is None or attributes is None:
        return None
    original = None
    with suppress(KeyError, UserError):
        original = mat_matrix(splits["original_att"], splits_file, "original_att")
    lists = {
        key: attempt("split lists", mat_indices, splits[key], splits_file, key, len(listed))
        for key in LISTS
        if key in splits
    }
    return Lists(
        attempt("image paths", _relative_paths, listed, name) or tuple(listed),
        labels,
        tuple(class_names),
        attributes,
        original,
        {key: rows for key, rows in lists.items() if rows is not None},
    )


def _relative_paths(listed: Sequence[str], name: str) -> tuple[str, ...]:
    files, wrong = [], []
    for path in listed:
        try:
            files.append(relative_image_path(path, name))
        except UserError as error:
            wrong.append(error)
    if wrong:
        message = f"{len(wrong)} of {len(listed)} listed paths cannot be used: {wrong[0].message}"
        raise UserError(message, wrong[0].where, wrong[0].hint)
    return tuple(files)


def problems_of(content: Lists, word_vectors: int) -> list[tuple[str, str]]:
    """All that keeps training from working, or makes its figures wrong: the name of a check, and a phrase."""
    labels, (attributes, columns), classes = content.labels, content.attributes.shape, len(content.class_names)
    turned = "; it seems to be transposed" if attributes == classes else ""
    counts = [
        (len(labels), "labels", len(content.files), "image files in res101.mat"),
        (columns, "columns of att", classes, f"class names in att_splits.mat{turned}"),
        (word_vectors, "word vectors", attributes, "attributes in att_splits.mat"),
    ]
    found = [("counts", f"{have} {what} for {want} {of}") for have, what, want, of in counts if have != want]
    if len(beyond := np.unique(labels[labels >= classes]) + 1):
        found.append(("labels", f"label {some(beyond.tolist())} is beyond the {classes} classes of att_splits.mat"))
    if broken := name_classes(without_direction(content.attributes.T), content.class_names):
        found.append(("attributes", f"the attributes are all zero, not finite or out of range for class {broken}"))
    # Absent lists violate nothing.
    present = {name: content.lists[name] for name in ("trainval_loc", *TEST_LISTS) if name in content.lists}
    problems = [f"{name} is empty" for name, rows in present.items() if not len(rows)]
    for name, rows in present.items():
        if repeated := len(rows) - len(np.unique(rows)):
            problems.append(f"{name} lists {repeated} images twice")
    for (one, rows), (other, others) in combinations(present.items(), 2):
        if shared := np.intersect1d(rows, others).size:
            problems.append(f"{shared} images are in {one} and in {other}")
    if len(present) == 3:
        seen, test_seen, test_unseen = (np.unique(labels[rows[rows < len(labels)]]) for rows in present.values())
        if both := name_classes(np.intersect1d(seen, test_unseen), content.class_names):
            problems.append(f"unseen classes are in trainval_loc: {both}")
        if strangers := name_classes(np.setdiff1d(test_seen, seen), content.class_names):
            problems.append(f"classes of test_seen_loc are not in trainval_loc: {strangers}")
    return found + [("split lists", text) for text in problems]


def name_classes(classes: Int[np.ndarray, " _"], class_names: Sequence[str]) -> str:
    """The first classes by name, and the count of the others; empty without any."""
    return some([class_names[i] if i < len(class_names) else f"number {i + 1}" for i in classes])


def _digest(benchmark: Benchmark, root: Path) -> str:
    digest = hashlib.sha256()
    # Stamps of drawn pictures, since lists and splits do not tell pictures of two sizes or seeds apart.
    for stamp in (benchmark.image_root / STANDIN_MARKER, root / SYNTHETIC_MARKER):
        if stamp.is_file():
            digest.update(stamp.read_bytes())
    for strings in (benchmark.image_files, benchmark.class_names):
        digest.update("\n".join(strings).encode() + b"\0")
    lists = (benchmark.lists[name] for name in LISTS)
    for array in (benchmark.labels, benchmark.attributes, benchmark.word_vectors, *lists):
        digest.update(repr((array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.hexdigest()
