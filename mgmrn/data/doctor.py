"""Findings about a data set: all that is wrong with it, where loading stops at the first error.

An `error` keeps training from working or makes its figures wrong; a `warning` is worth knowing and needs no action. A
broken data set raises nothing here. I images, U classes, S attributes, L word-vector length.
"""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float, Int

from mgmrn.config import BenchmarkConfig
from mgmrn.data.pictures import read_picture
from mgmrn.data.published import PUBLISHED, splits_digest
from mgmrn.data.splits import existing, load_final, load_tune
from mgmrn.data.xlsa17 import (
    LISTS,
    TEST_LISTS,
    list_problems,
    lists_folder,
    load_word_vectors,
    name_classes,
    read_indices,
    read_mat,
    read_strings,
    relative_image_path,
    with_train_and_val,
    word_vector_file,
)
from mgmrn.errors import UserError, some

Progress = Callable[[int, int], None]
"""Called with the number of pictures decoded so far and their total."""

Found = TypeVar("Found")

REQUIRED_LISTS = ("trainval_loc", *TEST_LISTS)
UNIT_TOLERANCE = 1e-3
SAME_DIRECTION = 0.999
"""Least cosine between a class's `att` and `original_att`, which differ by a factor alone."""

_GET_AGAIN = "get the Proposed Splits of the data set again"
_NOTHING = "nothing has to be done: "


@dataclass(frozen=True)
class Finding:
    """One result of one check."""

    level: Literal["error", "warning", "ok"]
    check: str
    detail: str
    remedy: str = ""


@dataclass
class _Report:
    """Findings so far."""

    findings: list[Finding] = field(default_factory=list)

    def ok(self, check: str, detail: str) -> None:
        self.findings.append(Finding("ok", check, detail))

    def warn(self, check: str, detail: str, remedy: str) -> None:
        self.findings.append(Finding("warning", check, detail, remedy))

    def error(self, check: str, detail: str, remedy: str = "") -> None:
        self.findings.append(Finding("error", check, detail, remedy or _GET_AGAIN))

    def run(self, name: str, examine: Callable[..., Found | None], *arguments: Any) -> Found | None:
        """Calls a check with this report and the arguments; an exception becomes a finding."""
        try:
            with np.errstate(invalid="ignore"):  # NaN where whole numbers belong becomes a finding.
                return examine(self, *arguments)
        except UserError as error:
            self.error(name, f"{error.message} [{error.where}]" if error.where else error.message, error.hint)
        except Exception as error:  # Broken files fail in many ways; the other checks go on.
            self.error(name, f"the check broke off: {type(error).__name__}: {error}")
        return None


@dataclass(frozen=True)
class _Lists:
    """Content of the two .mat files, as far as it can be read."""

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

    `sample` is the number of pictures to decode, drawn with a fixed seed; None: all.
    """
    report = _Report()
    if not root.is_dir():
        report.error("data root", f"{root} does not exist", "give the folder that holds xlsa17/")
        return report.findings
    report.ok("data root", str(root.resolve()))
    vectors = report.run("word vectors", _word_vectors, word_vector_file(root, config))
    content = report.run("lists", _read, root, config.name)
    if content is not None:
        report.run("counts", _counts, content, vectors)
        for check, examine in _CHECKS.items():
            report.run(check, examine, content)
        if config.name in PUBLISHED:
            report.run("published lists", _published, content, config.name)
        report.run("pictures", _pictures, root / config.name, content.files, sample, threads, progress)
    if not any(finding.level == "error" for finding in report.findings):
        report.run("splits", _splits, root, config)
    return report.findings


def _word_vectors(report: _Report, path: Path) -> int:
    """Number of word vectors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zero rows become a finding.
        found = load_word_vectors(path)
    report.ok("word vectors", f"{len(found)} of length {found.shape[1]}")
    if empty := np.flatnonzero(~found.any(axis=1)).tolist():
        detail = f"all zeros for attribute {some(empty)} (from 0)"
        report.warn("word vectors", detail, _NOTHING + "without a word, its query is the map's bias")
    return len(found)


def _read(report: _Report, root: Path, name: str) -> _Lists | None:
    folder = lists_folder(root, name)
    tables: dict[str, dict[str, Any]] = {}
    for file, needed, wanted in (
        ("res101.mat", ("image_files", "labels"), ()),
        ("att_splits.mat", ("att", "allclasses_names", *REQUIRED_LISTS), ("original_att", *LISTS)),
    ):
        try:
            tables[file] = read_mat(folder / file, needed, wanted)
        except UserError as error:
            report.error(file, f"{error.message} [{error.where}]", error.hint)
    if len(tables) < 2:
        return None
    images, splits = tables["res101.mat"], tables["att_splits.mat"]
    files, unplaced = [], []
    for listed in read_strings(images["image_files"]):
        try:
            files.append(relative_image_path(listed, name))
        except UserError as error:
            files.append(listed)
            unplaced.append(error)
    if unplaced:
        report.error("image paths", f"{len(unplaced)} cannot be used: {unplaced[0].message}", unplaced[0].hint)
    labels = read_indices(images["labels"], folder / "res101.mat", "labels")
    lists: dict[str, Int[np.ndarray, " _"]] = {}
    for key in (key for key in LISTS if key in splits):
        try:
            lists[key] = read_indices(splits[key], folder / "att_splits.mat", key, below=len(files))
        except UserError as error:
            report.error("split lists", error.message, error.hint)
    original = splits.get("original_att")
    return _Lists(
        tuple(files),
        labels,
        tuple(read_strings(splits["allclasses_names"])),
        np.asarray(splits["att"], dtype=np.float64),
        None if original is None else np.asarray(original, dtype=np.float64),
        lists,
    )


def _counts(report: _Report, content: _Lists, word_vectors: int | None) -> None:
    attributes, classes = content.attributes.shape
    expected = [
        (len(content.labels), len(content.files), "labels", "image files", "res101.mat"),
        (classes, len(content.class_names), "columns of att", "class names", "att_splits.mat"),
    ]
    if word_vectors is not None:
        expected.append((word_vectors, attributes, "word vectors", "attributes", "the word vectors' file"))
    wrong = [row for row in expected if row[0] != row[1]]
    for have, want, what, of, file in wrong:
        report.error("counts", f"{have} {what} for {want} {of} in {file}")
    if not wrong:
        found = f"{len(content.files)} images, {len(content.class_names)} classes, {attributes} attributes"
        report.ok("counts", found)


def _labels(report: _Report, content: _Lists) -> None:
    classes = len(content.class_names)
    if empty := [content.class_names[i] for i in np.setdiff1d(np.arange(classes), content.labels)]:
        report.warn("labels", f"{len(empty)} classes have no image: {some(empty)}", "they are not scored")
    beyond = np.unique(content.labels[content.labels >= classes]) + 1
    if len(beyond):
        report.error("labels", f"label {some(beyond.tolist())} is beyond the {classes} classes")
    else:
        report.ok("labels", f"from 1 to {content.labels.max() + 1}")


def _class_order(report: _Report, content: _Lists) -> None:
    """Compares classes with the folders of their images, which are named alike in all published lists."""
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
        remedy = "put allclasses_names and att in the order of the labels, which is not alphabetical or numeric"
        report.error("class order", f"{len(wrong)} classes have another class's images: {some(wrong)}", remedy)
    elif agreeing:
        report.ok("class order", f"{agreeing} of {len(content.class_names)} classes have their folder's name")
    else:
        report.warn("class order", "no folder is named like a class, so it cannot be checked", "check it by eye")


def _attributes(report: _Report, content: _Lists) -> None:
    lengths = np.linalg.norm(content.attributes, axis=0)
    broken = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(broken):
        report.error("attributes", f"all zero or not finite for class {name_classes(broken, content.class_names)}")
        return
    longer = np.flatnonzero(np.abs(lengths - 1) > UNIT_TOLERANCE)
    if len(longer):
        detail = f"{len(longer)} columns are not of unit length: {name_classes(longer, content.class_names)}"
        report.warn("attributes", detail, _NOTHING + "they are normalised")
    else:
        report.ok("attributes", f"{len(lengths)} columns of unit length")
    if content.original is not None and content.original.shape == content.attributes.shape:
        products = (content.attributes * content.original).sum(axis=0)
        norms = lengths * np.linalg.norm(content.original, axis=0)
        turned = np.flatnonzero(~(products >= SAME_DIRECTION * norms))
        if len(turned):
            classes = name_classes(turned, content.class_names)
            detail = f"att and original_att point elsewhere for {len(turned)} classes: {classes}"
            report.warn("attributes", detail, "att is used; make sure that it is the one that is meant")


def _duplicates(report: _Report, content: _Lists) -> None:
    twice = [file for file, count in Counter(content.files).items() if count > 1]
    trained, tested = (
        {content.files[i] for name in names if name in content.lists for i in content.lists[name]}
        for names in (("trainval_loc",), TEST_LISTS)
    )
    if leaked := [file for file in twice if file in trained and file in tested]:
        detail = f"{len(leaked)} files are in trainval and test: {some(leaked)}"
        report.error("duplicates", detail, "take one of them out")
    elif twice:
        report.warn("duplicates", f"{len(twice)} files are listed twice: {some(twice)}", _GET_AGAIN)
    else:
        report.ok("duplicates", "every image is listed once")


def _overlaps(report: _Report, content: _Lists) -> None:
    errors = list_problems(content.lists, content.labels, content.class_names)
    for text in errors:
        report.error("split lists", text)
    if not errors:
        sizes = " / ".join(str(len(content.lists[name])) for name in REQUIRED_LISTS if name in content.lists)
        report.ok("split lists", f"trainval / test_seen / test_unseen {sizes}, disjoint")


def _train_and_val(report: _Report, content: _Lists) -> None:
    """Compares train_loc and val_loc with what loading makes of them, which is right in any case."""
    lists = content.lists
    rebuilt = with_train_and_val(lists, content.labels, 0)
    wrong = [
        f"{name} {'overlaps other lists or their classes' if name in lists else 'is missing'}"
        for name in ("train_loc", "val_loc")
        if name not in lists or not np.array_equal(np.sort(lists[name]), np.sort(rebuilt[name]))
    ]
    if wrong:
        report.warn("train and val", " and ".join(wrong), _NOTHING + "both are made from trainval_loc by val's classes")
    else:
        found = (lists["train_loc"], lists["val_loc"])
        sizes = " / ".join(f"{len(rows)} ({len(np.unique(content.labels[rows]))})" for rows in found)
        report.ok("train and val", f"images (classes) {sizes}, disjoint classes")


_CHECKS: dict[str, Callable[[_Report, _Lists], None]] = {
    "labels": _labels,
    "class order": _class_order,
    "attributes": _attributes,
    "duplicates": _duplicates,
    "split lists": _overlaps,
    "train and val": _train_and_val,
}


def _published(report: _Report, content: _Lists, name: str) -> None:
    digest = splits_digest(content.files, content.labels, content.class_names, content.lists)
    if digest == PUBLISHED[name].digest:
        report.ok("published lists", f"the Proposed Splits of {name}, {digest[:12]}")
        return
    detail = f"images, labels or lists are not those of the Proposed Splits of {name} ({digest[:12]})"
    report.warn("published lists", detail, "get them again, or do not compare figures with published ones")


def _pictures(
    report: _Report, folder: Path, files: tuple[str, ...], sample: int | None, threads: int, progress: Progress | None
) -> None:
    there = existing(folder, files)
    if missing := [file for file in files if file not in there]:
        detail = f"{len(missing)} of {len(files)} are not below {folder}: {some(missing)}"
        report.error("pictures", detail, "put the data set's pictures there, or check --data-root")
    chosen = [file for file in dict.fromkeys(files) if file in there]
    if sample is not None and sample < len(chosen):
        chosen = random.Random(0).sample(chosen, sample)
    plain: dict[str, bool] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="doctor") as pool:
        for done, (file, found) in enumerate(pool.map(lambda file: (file, _is_plain(folder / file)), chosen), start=1):
            if isinstance(found, UserError):
                report.error("pictures", f"{found.where}: {found.message}", found.hint)
            else:
                plain[file] = found
            if progress is not None:
                progress(done, len(chosen))
    if unicoloured := [file for file, is_plain in plain.items() if is_plain]:
        detail = f"{len(unicoloured)} have one colour everywhere: {some(unicoloured)}"
        report.warn("pictures", detail, "look at them: they may be damaged")
    if plain:
        report.ok("pictures", f"{len(plain)} of {len(files)} decoded")


def _is_plain(path: Path) -> bool | UserError:
    """Whether a picture has one colour everywhere; the error of one that cannot be read."""
    try:
        picture = read_picture(path)
    except UserError as error:
        return error
    return bool((picture == picture[:, :1, :1]).all())


def _splits(report: _Report, root: Path, config: BenchmarkConfig) -> None:
    """Loads both splits, as a run does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for load in (load_tune, load_final):
            data = load(root, config)
            sizes = f"train {len(data.train)}, seen {len(data.seen)}, unseen {len(data.unseen)}"
            classes = f"{data.classes.seen.sum()} seen and {(~data.classes.seen).sum()} unseen classes"
            report.ok("splits", f"{data.split}: {sizes} images; {classes}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
