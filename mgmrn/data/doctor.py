"""Findings about a data set: all that is wrong with it, where loading stops at the first error.

An `error` keeps training from working or makes its figures wrong; a `warning` is worth knowing and needs no action. A
broken data set raises nothing here. I images, U classes, S attributes, L word-vector length.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mgmrn.config import BenchmarkConfig
from mgmrn.data.class_table import is_name
from mgmrn.data.matrices import alike_rows
from mgmrn.data.pictures import read_picture
from mgmrn.data.published import PUBLISHED, splits_digest
from mgmrn.data.splits import existing, load_final, load_tune
from mgmrn.data.xlsa17 import (
    TEST_LISTS,
    Lists,
    attribute_names,
    load_word_vectors,
    name_classes,
    problems_of,
    read_lists,
    with_train_and_val,
    word_vector_file,
)
from mgmrn.errors import UserError, some

THREADS = 4
"""Threads that decode pictures."""
SAME_DIRECTION = 0.999
"""Least cosine between a class's `att` and `original_att`, which differ by a factor alone."""

_GET_AGAIN = "get the Proposed Splits of the data set again"
_RENAME = "give every class a name of its own, in printable characters"
_NOTHING = "nothing has to be done: "


@dataclass(frozen=True)
class Finding:
    """One result of one check."""

    level: Literal["error", "warning", "ok"]
    check: str
    detail: str
    remedy: str = ""


class _Report(list[Finding]):
    """Findings so far."""

    def ok(self, check: str, detail: str) -> None:
        self.append(Finding("ok", check, detail))

    def warn(self, check: str, detail: str, remedy: str) -> None:
        self.append(Finding("warning", check, detail, remedy))

    def error(self, check: str, detail: str, remedy: str = "") -> None:
        self.append(Finding("error", check, detail, remedy or _GET_AGAIN))

    def run(self, name: str, examine: Callable[..., Any], *arguments: Any) -> Any:
        """What a check or a reader returns; an exception becomes a finding, and the result None."""
        try:
            return examine(*arguments)
        except UserError as error:
            self.error(name, f"{error.message} [{error.where}]" if error.where else error.message, error.hint)
        except Exception as error:  # Broken files fail in many ways; the other checks go on.
            self.error(name, f"the check broke off: {type(error).__name__}: {error}")
        return None


def verify(root: Path, config: BenchmarkConfig) -> list[Finding]:
    """Examines files, lists, attributes, word vectors and pictures."""
    report = _Report()
    if not root.is_dir():
        report.error("data root", f"{root} does not exist", "give the folder that holds xlsa17/")
        return report
    report.ok("data root", str(root.resolve()))
    vectors = report.run("word vectors", _word_vectors, report, word_vector_file(root, config))
    content: Lists | None = report.run("lists", read_lists, root, config.name, report.run)
    if content is not None:
        for check, text in problems_of(content, len(content.attributes) if vectors is None else vectors):
            report.error(check, text)
        broken = {finding.check for finding in report if finding.level == "error"}
        for check, (examine, *needed) in _CHECKS.items():
            if broken.isdisjoint((check, *needed)):
                report.run(check, examine, report, content)
        if broken.isdisjoint(_NEEDED_BY_SPLITS):
            names = attribute_names(root, config, len(content.attributes))
            report.run("attributes", _unlearnable, report, content, names)
        if config.name in PUBLISHED and broken.isdisjoint(_NEEDED_BY_SPLITS):
            report.run("published lists", _published, report, content, config.name)
        report.run("pictures", _pictures, report, root / config.name, content.files)
    if not any(finding.level == "error" for finding in report):
        report.run("splits", _splits, report, root, config)
    return report


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


def _counts(report: _Report, content: Lists) -> None:
    attributes, classes = content.attributes.shape
    report.ok("counts", f"{len(content.files)} images, {classes} classes, {attributes} attributes")


def _labels(report: _Report, content: Lists) -> None:
    without = np.setdiff1d(np.arange(len(content.class_names)), content.labels)
    if empty := name_classes(without, content.class_names):
        report.warn("labels", f"{len(without)} classes have no image: {empty}", "they are not scored")
    report.ok("labels", f"from 1 to {content.labels.max(initial=-1) + 1}")


def _class_names(report: _Report, content: Lists) -> None:
    """Names that cannot be read, and names that a reader or a file system may take for each other."""
    odd = [name for name in content.class_names if not is_name(name)]
    if odd:
        report.error("class names", f"{len(odd)} are empty or do not print: {some(list(map(ascii, odd)))}", _RENAME)
    same = [name for name, count in Counter(content.class_names).items() if count > 1]
    if same:
        report.error("class names", f"{len(same)} are given twice: {some(same)}", _RENAME)
    forms = Counter(map(_plain, set(content.class_names)))
    alike = sorted((name for name in set(content.class_names) if forms[_plain(name)] > 1), key=_plain)
    if alike:
        report.warn("class names", f"{len(alike)} differ in case, blanks or signs alone: {some(alike)}", _RENAME)
    if not (odd or same or alike):
        report.ok("class names", f"{len(content.class_names)} different ones")


def _class_order(report: _Report, content: Lists) -> None:
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


def _attributes(report: _Report, content: Lists) -> None:
    lengths = np.linalg.norm(content.attributes, axis=0)
    if len(longer := np.flatnonzero(np.abs(lengths - 1) > 1e-3)):
        detail = f"{len(longer)} columns are not of unit length: {name_classes(longer, content.class_names)}"
        report.warn("attributes", detail, _NOTHING + "they are normalised")
    else:
        report.ok("attributes", f"{len(lengths)} columns of unit length")
    if content.original is not None and content.original.shape == content.attributes.shape:
        products = (content.attributes * content.original).sum(axis=0)
        norms = lengths * np.linalg.norm(content.original, axis=0)
        if len(turned := np.flatnonzero(~(products >= SAME_DIRECTION * norms))):
            classes = name_classes(turned, content.class_names)
            detail = f"att and original_att point elsewhere for {len(turned)} classes: {classes}"
            report.warn("attributes", detail, "att is used; make sure that it is the one that is meant")
    if len(twins := alike_rows(content.attributes.T)):
        classes = name_classes(twins, content.class_names)
        detail = f"{len(twins)} classes cannot be told apart, since they have the attributes of another one: {classes}"
        report.warn("attributes", detail, "describe them by different numbers")


def _unlearnable(report: _Report, content: Lists, names: tuple[str, ...]) -> None:
    """Attributes in which all seen classes are alike."""
    values = content.attributes if content.original is None else content.original
    seen = values[:, np.unique(content.labels[content.lists["trainval_loc"]])]
    if len(alike := np.flatnonzero(seen.min(axis=1) == seen.max(axis=1))):
        which = some([names[s] for s in alike])
        detail = f"{len(alike)} cannot be learned, since all seen classes are alike in them: {which}"
        report.warn("attributes", detail, "choose other unseen classes, or leave those attributes out")


def _duplicates(report: _Report, content: Lists) -> None:
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


def _overlaps(report: _Report, content: Lists) -> None:
    sizes = " / ".join(str(len(content.lists[name])) for name in ("trainval_loc", *TEST_LISTS))
    report.ok("split lists", f"trainval / test_seen / test_unseen {sizes}, disjoint")


def _train_and_val(report: _Report, content: Lists) -> None:
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


_NEEDED_BY_SPLITS = ("counts", "labels", "split lists")
_CHECKS: dict[str, tuple[Any, ...]] = {
    "counts": (_counts,),
    "labels": (_labels,),
    "class names": (_class_names,),
    "class order": (_class_order, "counts"),
    "attributes": (_attributes, "counts"),
    "duplicates": (_duplicates, "counts"),
    "split lists": (_overlaps,),
    "train and val": (_train_and_val, *_NEEDED_BY_SPLITS),
}
"""Checks of what could be read, each with those without whose success it has no meaning."""


def _published(report: _Report, content: Lists, name: str) -> None:
    digest = splits_digest(content.files, content.labels, content.class_names, content.lists)
    if digest == PUBLISHED[name].digest:
        report.ok("published lists", f"the Proposed Splits of {name}, {digest[:12]}")
        return
    detail = f"images, labels or lists are not those of the Proposed Splits of {name} ({digest[:12]})"
    report.warn("published lists", detail, "get them again, or do not compare figures with published ones")


def _pictures(report: _Report, folder: Path, files: tuple[str, ...]) -> None:
    there = existing(folder, files)
    if missing := [file for file in files if file not in there]:
        detail = f"{len(missing)} of {len(files)} are not below {folder}: {some(missing)}"
        report.error("pictures", detail, "put the data set's pictures there, or check --data-root")
    chosen = [file for file in dict.fromkeys(files) if file in there]
    plain: dict[str, bool] = {}
    with ThreadPoolExecutor(THREADS, thread_name_prefix="doctor") as pool:
        for file, found in zip(chosen, pool.map(lambda file: _is_plain(folder / file), chosen), strict=True):
            if isinstance(found, UserError):
                report.error("pictures", f"{found.where}: {found.message}", found.hint)
            else:
                plain[file] = found
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for load in (load_tune, load_final):
            data = load(root, config)
            sizes = f"train {len(data.train)}, seen {len(data.seen)}, unseen {len(data.unseen)}"
            classes = f"{data.classes.seen.sum()} seen and {(~data.classes.seen).sum()} unseen classes"
            report.ok("splits", f"{data.split}: {sizes} images; {classes}")


def _plain(name: str) -> str:
    """Letters and digits of a name, of any script, in lower case."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))
