"""Makes a data root of a folder of pictures and a table of class attributes, in the xlsa17 layout.

    <folder>/<class>/…            pictures, at any depth
    <table>                       a row per class, a column per attribute (see `mgmrn.data.class_table`)
    <vectors>                     text file of GloVe (Pennington et al., EMNLP 2014) or word2vec (arXiv 1301.3781)

Splits follow the published ones: unseen classes are drawn or named, a share of every seen class's pictures is
test_seen, and as many seen classes as there are unseen ones, at most a third, are for validation. U classes, S
attributes, I images.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
from jaxtyping import Float, Int

from mgmrn.config import BenchmarkConfig
from mgmrn.data.class_table import GivenClasses, plain_name, read_class_table
from mgmrn.data.doctor import Finding, verify
from mgmrn.data.pictures import ENDINGS, files_below, open_picture
from mgmrn.data.splits import hold_out
from mgmrn.data.xlsa17 import lists_folder, relative_image_path, with_train_and_val, word_vector_file
from mgmrn.errors import UserError, some
from mgmrn.makers.making import already_made, whole_folder
from mgmrn.makers.xlsa17_writer import write_attribute_names, write_images_list, write_splits, write_word_vectors
from mgmrn.reading import text_lines, to_number

MARKER = "IMPORTED.json"
"""Stamp of an imported data root: the options of the import."""
UnknownWords = Literal["error", "zero", "mean"]
"""Treatment of words that the file lacks: an error, no part in the attribute's mean, or the mean of the known words."""
_FORMAT = "a line per word: the word, then its numbers, with spaces or tabs between"
FEWEST_NUMBERS = 2
"""Least length of a word vector."""
FEWEST_SEEN = 3
"""Least number of seen classes: one to validate with and two to train on."""
FEWEST_PICTURES = 3
"""Least number of pictures of a seen class: one is test_seen, and `tune` holds out another."""


@dataclass(frozen=True)
class ImportOptions:
    """Options of an import."""

    name: str
    """Name of the benchmark."""
    unknown_words: UnknownWords
    unseen: tuple[str, ...] = ()
    """Names of the unseen classes; empty: they are drawn."""
    unseen_share: float = 0.2
    """Share of the classes that is drawn as unseen."""
    test_seen_share: float = 0.2
    """Share of every seen class's pictures in test_seen."""
    seed: int = 0

    def __post_init__(self) -> None:
        for share in ("unseen_share", "test_seen_share"):
            if not 0 < getattr(self, share) < 1:
                message = f"{share} must lie between 0 and 1, got {getattr(self, share)}"
                raise UserError(message, f"--{share.replace('_', '-')}")


@dataclass(frozen=True)
class Imported:
    """An imported data set."""

    root: Path
    unseen: tuple[str, ...]
    val: tuple[str, ...]
    """Validation classes, a part of the seen ones."""
    images: dict[str, int]
    """Number of images in each list."""
    findings: tuple[Finding, ...]
    """Findings of `verify`, none of them an error."""


def import_folder(folder: Path, table: Path, vectors: Path, root: Path, options: ImportOptions) -> Imported:
    """Copies, splits and checks a data set in the absent or empty folder `root`; an error leaves nothing behind.

    Raises UserError for a root with files, a folder and a table that do not fit, too few classes or pictures, unknown
    words with `unknown_words: error`, and errors that `verify` finds.
    """
    try:
        config = BenchmarkConfig(name=options.name)
    except ValueError as error:
        hint = "use letters, digits, - and _"
        raise UserError(f"'{options.name}' cannot be the name of a benchmark", "--name", hint) from error
    if root.resolve().is_relative_to(folder.resolve()):
        raise UserError("the folder to make lies in the folder of pictures", str(root), "name one outside")
    stamp = {"what": "imported", "version": 1, **asdict(options), "unseen": list(options.unseen)}
    if already_made(root, MARKER, stamp):
        raise UserError("a data set was imported there before", str(root), "delete it, or name a new folder")
    classes = read_class_table(table)
    if classes.columns is None:
        raise UserError("the class table does not name its attributes", str(table), "write a .csv with a head")
    attributes = classes.attributes(classes.columns).T.astype(np.float64)
    words = {word for name in classes.columns for word in words_of(name)}
    word_vectors = attribute_vectors(classes.columns, read_vectors(vectors, words), options.unknown_words)
    sources, files, labels = _pictures(folder, classes, options.name)
    lists = propose(labels, classes.names, options)
    with whole_folder(root, MARKER, stamp) as making:
        for source, file in zip(sources, files, strict=True):
            target = making / options.name / file
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_picture(source) as original, target.open("wb") as copy:
                shutil.copyfileobj(original, copy)
        location = lists_folder(making, options.name)
        write_images_list(location, files, labels)
        write_splits(location, classes.names, attributes / np.linalg.norm(attributes, axis=0), attributes, lists)
        write_word_vectors(word_vector_file(making, config), word_vectors)
        write_attribute_names(making, options.name, classes.columns)
        (making / f"{options.name}.yaml").write_text(f"benchmark:\n  name: {options.name}\n", encoding="utf-8")
        findings = [*_left_out(folder, sources), *verify(making, config)]
        _refuse_errors(findings, making / options.name / "images", folder)
    val, unseen = (np.unique(labels[lists[name]]) for name in ("val_loc", "test_unseen_loc"))
    return Imported(
        root,
        tuple(classes.names[u] for u in unseen),
        tuple(classes.names[u] for u in val),
        {name: len(rows) for name, rows in lists.items()},
        tuple(one for one in findings if one.check != "data root"),
    )


def propose(
    labels: Int[np.ndarray, " I"], names: Sequence[str], options: ImportOptions
) -> dict[str, Int[np.ndarray, " _"]]:
    """The five image lists, from 0. Raises UserError for an unknown unseen class, or too few seen classes or pictures."""
    if strangers := sorted(set(options.unseen) - set(names)):
        raise UserError(f"there is no class {strangers[0]} to be unseen", "--unseen", "name classes of the table")
    count = max(1, round(options.unseen_share * len(names)))
    drawn = np.random.default_rng([options.seed, 0x05EE]).permutation(len(names))[:count]
    unseen = np.flatnonzero(np.isin(names, options.unseen)) if options.unseen else np.sort(drawn)
    seen = np.setdiff1d(np.arange(len(names)), unseen)
    if len(seen) < FEWEST_SEEN:
        hint = "add classes, or make fewer of them unseen"
        raise UserError(f"{len(seen)} classes would be seen, {FEWEST_SEEN} are needed", "--classes", hint)
    if few := [names[u] for u in seen if (labels == u).sum() < FEWEST_PICTURES]:
        message = f"{len(few)} seen classes have fewer than {FEWEST_PICTURES} pictures, the first is {few[0]}"
        raise UserError(message, "FOLDER", "add pictures, or leave those classes out of folder and table")
    trainval, test_seen = hold_out(np.flatnonzero(np.isin(labels, seen)), labels, options.test_seen_share, options.seed)
    lists = {
        "trainval_loc": trainval,
        "test_seen_loc": test_seen,
        "test_unseen_loc": np.flatnonzero(np.isin(labels, unseen)),
    }
    return with_train_and_val(lists, labels, options.seed)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Names of classes from a text file, one a line. Raises UserError when the file is missing or empty."""
    remedy = "write a class's name a line"
    names = tuple(filter(None, map(plain_name, text_lines(path, "list of classes", remedy))))
    if not names:
        raise UserError("the list of classes is empty", str(path), remedy)
    return names


def _pictures(folder: Path, classes: GivenClasses, name: str) -> tuple[list[Path], list[str], Int[np.ndarray, " I"]]:
    """Pictures below the classes' folders: their paths, their targets relative to `<root>/<name>`, and their labels."""
    if not folder.is_dir():
        raise UserError("the folder of pictures does not exist", str(folder), "name one with a folder per class")
    # macOS decomposes letters with accents in names of folders.
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    folders = {plain_name(entry.name): entry for entry in entries}
    if unlike := sorted(set(entries) - set(folders.values())):
        raise UserError("two folders have the same name, encoded differently", str(unlike[0]), "merge them")
    for found, wanted, complaint in (
        (folders.keys(), set(classes.names), "the table has no row for the folder"),
        (set(classes.names), folders.keys(), "there is no folder for the class"),
    ):
        if lone := sorted(found - wanted):
            hint = "name folders and rows of the table alike, letter by letter"
            raise UserError(f"{complaint} {some(lone, 1)}", str(folder), hint)
    sources, files, labels = [], [], []
    for label, class_name in enumerate(classes.names):
        of_class = [path for path in files_below(folders[class_name]) if path.suffix.lower() in ENDINGS]
        if not of_class:
            among = f"among {', '.join(sorted(ENDINGS))}"
            raise UserError("the class has no picture", str(folders[class_name]), among)
        for path in of_class:
            file = f"images/{path.relative_to(folder).as_posix()}"
            if relative_image_path(file, name) != file:
                hint = "folders named images or JPEGImages mean something in the layout; rename them"
                raise UserError("a folder cannot be called so", str(path.parent), hint)
            sources.append(path)
            files.append(file)
            labels.append(label)
    return sources, files, np.array(labels)


def _left_out(folder: Path, sources: Sequence[Path]) -> list[Finding]:
    others = [str(path.relative_to(folder)) for path in sorted(set(files_below(folder)) - set(sources))]
    names = some(others).encode(errors="backslashreplace").decode()
    return [Finding("ok", "left out", f"{len(others)} files are no pictures of a class: {names}")] if others else []


def _refuse_errors(findings: Sequence[Finding], copies: Path, folder: Path) -> None:
    if errors := [one for one in findings if one.level == "error"]:
        # The error names the original pictures, since the copies are removed.
        detail = errors[0].detail.replace(str(copies), str(folder))
        more = f" (the first of {len(errors)} errors)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0].check}: {detail}{more}", str(folder), errors[0].remedy)


def words_of(name: str) -> tuple[str, ...]:
    """The words of an attribute's name, in lower case: `has_bill_shape::curved` → has, bill, shape, curved."""
    return tuple(re.findall(r"[^\W_]+", normalize("NFC", name).lower()))


def read_vectors(path: Path, wanted: set[str]) -> dict[str, Float[np.ndarray, " L"]]:
    """Vectors of some lower-case words from a text file, gzipped or not, with spaces or tabs between.

    A capitalised word replaces a missing lower-case one. Raises UserError, with the line, for another format.
    """
    exact: dict[str, Float[np.ndarray, " L"]] = {}
    capitalised: dict[str, Float[np.ndarray, " L"]] = {}
    length = 0
    for number, line in enumerate(text_lines(path, "file of word vectors", _FORMAT), start=1):
        fields = line.rstrip().replace("\t", " ").split(" ")
        if number == 1 and len(fields) == 2 and all(map(str.isdecimal, fields)):
            length = int(fields[1])
            continue
        if fields == [""]:
            continue
        length = length or sum(1 for _ in takewhile(_is_number, reversed(fields[1:])))
        # Some words hold spaces; a number before the vector belongs to a longer vector.
        word, numbers = fields[:-length], fields[-length:]
        if length < FEWEST_NUMBERS or not word or any(map(_is_number, word[1:])):
            found = sum(map(_is_number, fields[1:]))
            message = f"line {number} holds a word and {found} numbers instead of {max(length, FEWEST_NUMBERS)}"
            raise UserError(message, f"{path}:{number}", _FORMAT)
        name = normalize("NFC", " ".join(word))
        if name in wanted and name not in exact:
            exact[name] = _vector(numbers, path, number)
        elif name.lower() in wanted:
            capitalised.setdefault(name.lower(), _vector(numbers, path, number))
    if not length:
        raise UserError("the file holds no word vectors", str(path), _FORMAT)
    return capitalised | exact


def attribute_vectors(
    names: Sequence[str], vectors: Mapping[str, Float[np.ndarray, " L"]], unknown: UnknownWords
) -> Float[np.ndarray, "S L"]:
    """One vector per attribute: the mean over its name's words.

    With `zero`, an attribute without a known word is all zeros. Raises UserError for an unknown word with `error`, and
    always when all words are unknown.
    """
    missing = list(dict.fromkeys(word for name in names for word in words_of(name) if word not in vectors))
    if not vectors or (missing and unknown == "error"):
        hint = "rename attributes, take a larger file, or say --oov zero or --oov mean"
        raise UserError(f"there are no word vectors for {some(missing, 5)}", "--vectors", hint)
    average = np.mean(list(vectors.values()), axis=0)
    fallback = {word: average for word in missing} if unknown == "mean" else {}
    table = {**fallback, **vectors}
    rows = ([table[word] for word in words_of(name) if word in table] for name in names)
    return np.stack([np.mean(row, axis=0) if row else np.zeros_like(average) for row in rows])


def _is_number(text: str) -> bool:
    try:
        to_number(text)
    except ValueError:
        return False
    return True


def _vector(fields: Sequence[str], path: Path, number: int) -> Float[np.ndarray, " L"]:
    try:
        vector = np.array([to_number(field) for field in fields])
    except ValueError as error:
        raise UserError(f"line {number} holds something other than numbers: {error}", f"{path}:{number}") from error
    if not (np.abs(vector) <= np.finfo(np.float32).max).all():
        raise UserError(f"line {number} holds a number that is not finite in float32", f"{path}:{number}")
    return vector
