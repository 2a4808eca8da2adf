"""Examines a data set and lists all that is wrong with it, where loading stops at the first error.

An `error` keeps training from working or makes its figures wrong; a `warning` is worth knowing and is coped with.
Nothing here raises for a broken data set. I images, U classes, S attributes, L word-vector length.
"""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from mgmrn.config import BenchmarkConfig
from mgmrn.data.images import decode
from mgmrn.data.published import PUBLISHED, splits_digest
from mgmrn.data.splits import load_final, load_tune
from mgmrn.data.xlsa17 import (
    LISTS,
    STANDIN_MARKER,
    TEST_LISTS,
    lists_folder,
    load_word_vectors,
    read_indices,
    read_mat,
    read_strings,
    relative_image_path,
    word_vector_file,
)
from mgmrn.errors import UserError

Progress = Callable[[int, int], None]
"""Told how many pictures were decoded, of how many."""

REQUIRED_LISTS = ("trainval_loc", *TEST_LISTS)
UNIT_TOLERANCE = 1e-3
SAME_DIRECTION = 0.999
"""Least cosine between a class's `att` and `original_att`, which differ by a factor alone."""
SHOWN = 3
"""Offenders that a finding names."""

_GET_AGAIN = "get the Proposed Splits of the data set again"


@dataclass(frozen=True)
class Finding:
    """One result of one check."""

    level: Literal["error", "warning", "ok"]
    check: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class _Lists:
    """What the two .mat files hold, as far as it can be read."""

    files: tuple[str, ...]
    """Relative to `<root>/<name>`."""
    labels: Int[np.ndarray, " I"]
    """From 0."""
    class_names: tuple[str, ...]
    attributes: Float[np.ndarray, "S U"]
    original: Float[np.ndarray, "S U"] | None
    lists: Mapping[str, Int[np.ndarray, " _"]]
    """From 0; those that are there and in range."""


def verify(
    root: Path,
    config: BenchmarkConfig,
    *,
    sample: int | None = None,
    threads: int = 4,
    progress: Progress | None = None,
) -> list[Finding]:
    """Examines files, lists, attributes, word vectors and pictures.

    Args:
        root: the data root.
        config: which data set.
        sample: pictures to decode, drawn with a fixed seed; none: all.
        threads: that decode.
        progress: told after every decoded picture.
    """
    if not root.is_dir():
        return [Finding("error", "data root", f"{root} does not exist", "give the folder that holds xlsa17/")]
    findings = [Finding("ok", "data root", str(root.resolve()))]
    if (root / STANDIN_MARKER).exists():
        findings.append(Finding("warning", "stand-in", "the pictures are drawn stand-ins: no figure is a result"))
    vectors: list[Float[np.ndarray, "S L"]] = []
    findings += _guarded("word vectors", lambda: _word_vectors(word_vector_file(root, config), vectors))
    contents: list[_Lists] = []
    findings += _guarded("lists", lambda: _read(root, config.name, contents))
    for content in contents:
        findings += _guarded("counts", partial(_counts, content, len(vectors[0]) if vectors else None))
        for check, examine in _CHECKS.items():
            findings += _guarded(check, partial(examine, content))
        if config.name in PUBLISHED and not (root / STANDIN_MARKER).exists():
            findings += _guarded("published lists", partial(_published, content, config.name))
        pictures = root / config.name
        findings += _guarded("pictures", partial(_pictures, pictures, content.files, sample, threads, progress))
    if not any(finding.level == "error" for finding in findings):
        findings += _guarded("splits", lambda: _splits(root, config))
    return findings


def _guarded(check: str, examine: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of a check up to where it broke off, and that it did."""
    found: list[Finding] = []
    try:
        with np.errstate(invalid="ignore"):  # NaN where whole numbers belong becomes a finding.
            found.extend(examine())
    except UserError as error:
        place = f" [{error.where}]" if error.where else ""
        found.append(Finding("error", check, error.message + place, error.hint or _GET_AGAIN))
    except Exception as error:  # Files of strangers break in ways that nobody lists; the other checks go on.
        found.append(Finding("error", check, f"the check broke off: {type(error).__name__}: {error}", _GET_AGAIN))
    return found


def _word_vectors(path: Path, vectors: list[Float[np.ndarray, "S L"]]) -> Iterator[Finding]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zero rows become a finding.
        vectors.append(load_word_vectors(path))
    (found,) = vectors
    yield Finding("ok", "word vectors", f"{len(found)} of length {found.shape[1]}")
    if empty := np.flatnonzero(~found.any(axis=1)).tolist():
        yield Finding(
            "warning",
            "word vectors",
            f"all zeros for attribute {_some(empty)} (from 0)",
            "nothing has to be done: without a word, its query is the map's bias",
        )


def _read(root: Path, name: str, contents: list[_Lists]) -> Iterator[Finding]:
    folder = lists_folder(root, name)
    tables: dict[str, dict[str, Any]] = {}
    for file, needed, wanted in (
        ("res101.mat", ("image_files", "labels"), ()),
        ("att_splits.mat", ("att", "allclasses_names", *REQUIRED_LISTS), ("original_att", *LISTS)),
    ):
        try:
            tables[file] = read_mat(folder / file, needed, wanted)
        except UserError as error:
            yield Finding("error", file, f"{error.message} [{error.where}]", error.hint)
    if len(tables) < 2:
        return
    images, splits = tables["res101.mat"], tables["att_splits.mat"]
    files, unplaced = [], []
    for listed in read_strings(images["image_files"]):
        try:
            files.append(relative_image_path(listed, name))
        except UserError as error:
            files.append(listed)
            unplaced.append(error)
    if unplaced:
        first = unplaced[0]
        yield Finding(
            "error", "image paths", f"{len(unplaced)} cannot be used: {first.message}", first.hint or _GET_AGAIN
        )
    labels = read_indices(images["labels"], folder / "res101.mat", "labels")
    lists: dict[str, Int[np.ndarray, " _"]] = {}
    for key in LISTS:
        if key not in splits:
            continue
        try:
            lists[key] = read_indices(splits[key], folder / "att_splits.mat", key, below=len(files))
        except UserError as error:
            yield Finding("error", "split lists", error.message, error.hint or _GET_AGAIN)
    original = splits.get("original_att")
    contents.append(
        _Lists(
            tuple(files),
            labels,
            tuple(read_strings(splits["allclasses_names"])),
            np.asarray(splits["att"], dtype=np.float64),
            None if original is None else np.asarray(original, dtype=np.float64),
            lists,
        )
    )


def _counts(content: _Lists, word_vectors: int | None) -> Iterator[Finding]:
    attributes, classes = content.attributes.shape
    found = f"{len(content.files)} images, {len(content.class_names)} classes, {attributes} attributes"
    expected = [
        (len(content.labels), len(content.files), "labels", "image files", "res101.mat"),
        (classes, len(content.class_names), "columns of att", "class names", "att_splits.mat"),
    ]
    if word_vectors is not None:
        expected.append((word_vectors, attributes, "word vectors", "attributes", "the word vectors' file"))
    wrong = [row for row in expected if row[0] != row[1]]
    for have, want, what, of, file in wrong:
        yield Finding("error", "counts", f"{have} {what} for {want} {of} in {file}", _GET_AGAIN)
    if not wrong:
        yield Finding("ok", "counts", found)


def _labels(content: _Lists) -> Iterator[Finding]:
    classes = len(content.class_names)
    beyond = np.unique(content.labels[content.labels >= classes]) + 1
    if len(beyond):
        yield Finding("error", "labels", f"label {_some(beyond.tolist())} is beyond the {classes} classes", _GET_AGAIN)
    empty = [content.class_names[i] for i in np.setdiff1d(np.arange(classes), content.labels)]
    if empty:
        yield Finding("warning", "labels", f"{len(empty)} classes have no image: {_some(empty)}", "they are not scored")
    if not len(beyond):
        yield Finding("ok", "labels", f"from 1 to {content.labels.max() + 1}")


def _class_order(content: _Lists) -> Iterator[Finding]:
    """Folders are named like classes in all published lists; a class order taken from elsewhere shows up here."""
    position = {_plain(name): i for i, name in enumerate(content.class_names)}
    agreeing, wrong = 0, []
    for label, first in zip(*np.unique(content.labels, return_index=True), strict=True):
        if label >= len(content.class_names):
            continue
        folders = content.files[first].split("/")[:-1]
        named = {position.get(_plain("".join(folders[i:]))) for i in range(len(folders))} - {None}
        if label in named:
            agreeing += 1
        elif named:
            wrong.append(f"{content.files[first]} is labelled {content.class_names[label]}")
    if wrong:
        yield Finding(
            "error",
            "class order",
            f"{len(wrong)} classes have another class's images: {_some(wrong)}",
            "allclasses_names and att must be in the order of the labels, which is not alphabetical or numeric",
        )
    elif agreeing:
        yield Finding("ok", "class order", f"{agreeing} of {len(content.class_names)} classes have their folder's name")
    else:
        yield Finding(
            "warning", "class order", "no folder is named like a class, so it cannot be checked", "check it by eye"
        )


def _attributes(content: _Lists) -> Iterator[Finding]:
    lengths = np.linalg.norm(content.attributes, axis=0)
    broken = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(broken):
        yield Finding("error", "attributes", f"all zero or not finite for class {_names(content, broken)}", _GET_AGAIN)
        return
    longer = np.flatnonzero(np.abs(lengths - 1) > UNIT_TOLERANCE)
    if len(longer):
        yield Finding(
            "warning",
            "attributes",
            f"{len(longer)} columns are not of unit length: {_names(content, longer)}",
            "nothing has to be done: they are normalised",
        )
    if content.original is not None and content.original.shape == content.attributes.shape:
        products = (content.attributes * content.original).sum(axis=0)
        norms = lengths * np.linalg.norm(content.original, axis=0)
        turned = np.flatnonzero(~(products >= SAME_DIRECTION * norms))
        if len(turned):
            yield Finding(
                "warning",
                "attributes",
                f"att and original_att point elsewhere for {len(turned)} classes: {_names(content, turned)}",
                "att is used; make sure that it is the one that is meant",
            )
    if not len(longer):
        yield Finding("ok", "attributes", f"{len(lengths)} columns of unit length")


def _duplicates(content: _Lists) -> Iterator[Finding]:
    counts = Counter(content.files)
    twice = [file for file, count in counts.items() if count > 1]
    if not twice:
        yield Finding("ok", "duplicates", "every image is listed once")
        return
    trained, tested = (
        {content.files[i] for name in names if name in content.lists for i in content.lists[name]}
        for names in (("trainval_loc",), TEST_LISTS)
    )
    if leaked := [file for file in twice if file in trained and file in tested]:
        yield Finding(
            "error",
            "duplicates",
            f"{len(leaked)} files are in trainval and test: {_some(leaked)}",
            "take one of them out",
        )
    else:
        yield Finding("warning", "duplicates", f"{len(twice)} files are listed twice: {_some(twice)}", _GET_AGAIN)


def _overlaps(content: _Lists) -> Iterator[Finding]:
    lists = content.lists
    required = [name for name in REQUIRED_LISTS if name in lists]
    errors = [f"{name} is empty" for name in required if not len(lists[name])]
    for name in required:
        if repeated := len(lists[name]) - len(np.unique(lists[name])):
            errors.append(f"{name} lists {repeated} images twice")
    for one, other in combinations(required, 2):
        if shared := np.intersect1d(lists[one], lists[other]).size:
            errors.append(f"{shared} images are in {one} and in {other}")
    classes = {name: np.unique(content.labels[rows[rows < len(content.labels)]]) for name, rows in lists.items()}
    if {"trainval_loc", *TEST_LISTS} <= set(classes):
        both = np.intersect1d(classes["trainval_loc"], classes["test_unseen_loc"])
        if len(both):
            errors.append(f"unseen classes are in trainval_loc: {_names(content, both)}")
        strangers = np.setdiff1d(classes["test_seen_loc"], classes["trainval_loc"])
        if len(strangers):
            errors.append(f"classes of test_seen_loc are not in trainval_loc: {_names(content, strangers)}")
    yield from (Finding("error", "split lists", text, _GET_AGAIN) for text in errors)
    if not errors:
        sizes = " / ".join(str(len(lists[name])) for name in required)
        yield Finding("ok", "split lists", f"trainval / test_seen / test_unseen {sizes}, disjoint")


def _train_and_val(content: _Lists) -> Iterator[Finding]:
    """Lists that loading rebuilds when they are wrong: what is found is never an error."""
    lists = content.lists
    if missing := [name for name in ("train_loc", "val_loc") if name not in lists]:
        yield Finding(
            "warning",
            "train and val",
            f"{' and '.join(missing)} missing",
            "nothing has to be done: made from trainval_loc",
        )
        return
    problems = []
    for name in ("train_loc", "val_loc"):
        for test in (test for test in TEST_LISTS if test in lists):
            if shared := np.intersect1d(lists[name], lists[test]).size:
                problems.append(f"{shared} images are in {name} and in {test}")
    train, val = (np.unique(content.labels[lists[name]]) for name in ("train_loc", "val_loc"))
    both = np.intersect1d(train, val)
    if len(both):
        problems.append(f"classes are in train_loc and in val_loc: {_names(content, both)}")
    for problem in problems:
        yield Finding(
            "warning",
            "train and val",
            problem,
            "nothing has to be done: both are made from trainval_loc by val's classes",
        )
    if not problems:
        sizes = f"{len(lists['train_loc'])} ({len(train)}) / {len(lists['val_loc'])} ({len(val)})"
        yield Finding("ok", "train and val", f"images (classes) {sizes}, disjoint classes")


_CHECKS: dict[str, Callable[[_Lists], Iterator[Finding]]] = {
    "labels": _labels,
    "class order": _class_order,
    "attributes": _attributes,
    "duplicates": _duplicates,
    "split lists": _overlaps,
    "train and val": _train_and_val,
}


def _published(content: _Lists, name: str) -> Iterator[Finding]:
    digest = splits_digest(content.files, content.labels, content.class_names, content.lists)
    if digest == PUBLISHED[name].digest:
        yield Finding("ok", "published lists", f"the Proposed Splits of {name}, {digest[:12]}")
    else:
        yield Finding(
            "warning",
            "published lists",
            f"images, labels or lists are not those of the Proposed Splits of {name} ({digest[:12]})",
            "get them again, or do not compare figures with published ones",
        )


def _pictures(
    folder: Path, files: tuple[str, ...], sample: int | None, threads: int, progress: Progress | None
) -> Iterator[Finding]:
    there = _present(folder, files)
    if missing := [file for file in files if file not in there]:
        yield Finding(
            "error",
            "pictures",
            f"{len(missing)} of {len(files)} are not below {folder}: {_some(missing)}",
            "put the data set's pictures there, or check --data-root",
        )
    chosen = [file for file in dict.fromkeys(files) if file in there]
    if sample is not None and sample < len(chosen):
        chosen = random.Random(0).sample(chosen, sample)
    broken: list[str] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="doctor") as pool:
        for done, complaint in enumerate(pool.map(lambda file: _complaint(folder / file), chosen), start=1):
            if complaint:
                broken.append(complaint)
            if progress is not None:
                progress(done, len(chosen))
    if broken:
        yield Finding("error", "pictures", f"{len(broken)} cannot be decoded: {_some(broken)}", "get those files again")
    elif chosen:
        yield Finding("ok", "pictures", f"{len(chosen)} of {len(files)} decoded")


def _present(folder: Path, files: tuple[str, ...]) -> set[str]:
    """The files that are there, by one listing per folder."""
    there: set[str] = set()
    for parent in {file.rpartition("/")[0] for file in files}:
        place = folder / parent
        if place.is_dir():
            there.update(f"{parent}/{entry.name}" if parent else entry.name for entry in place.iterdir())
    return there


def _complaint(path: Path) -> str:
    try:
        decode(path)
    except UserError as error:
        return f"{path} ({error.message})"
    return ""


def _splits(root: Path, config: BenchmarkConfig) -> Iterator[Finding]:
    """Loading itself, which has the last word."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for load in (load_tune, load_final):
            data = load(root, config)
            sizes = f"train {len(data.train)}, seen {len(data.seen)}, unseen {len(data.unseen)}"
            classes = f"{data.classes.seen.sum()} seen and {(~data.classes.seen).sum()} unseen classes"
            yield Finding("ok", "splits", f"{data.split}: {sizes} images; {classes}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _names(content: _Lists, classes: Int[np.ndarray, " _"]) -> str:
    known = len(content.class_names)
    return _some([content.class_names[i] if i < known else f"number {i + 1}" for i in classes])


def _some(items: Sequence[object]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(str(item) for item in items[:SHOWN]) + more
