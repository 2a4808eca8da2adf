"""Word vectors for attributes from a text file of GloVe (Pennington et al., EMNLP 2014) or word2vec (arXiv 1301.3781).

A line is a word and its numbers, with a space between; word2vec's text format begins with a line of two counts. S
attributes, L length.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from mgmrn.errors import UserError, some

UnknownWords = Literal["error", "zero", "mean"]
"""Treatment of words that the file lacks: an error, no part in the attribute's mean, or the mean of the known words."""

_FORMAT = "a line per word: the word, then its numbers, with spaces between"


def words_of(name: str) -> tuple[str, ...]:
    """The words of an attribute's name, in lower case: `has_bill_shape::curved` → has, bill, shape, curved."""
    return tuple(re.findall(r"[^\W_]+", name.lower()))


def read_vectors(path: Path, wanted: set[str]) -> dict[str, Float[np.ndarray, " L"]]:
    """The vectors of some words; a capitalised word replaces a missing lower-case one.

    Args:
        path: text file, gzipped if it ends in `.gz`.
        wanted: words in lower case.

    Raises:
        UserError: when the file cannot be read or is of another format; names the line.
    """
    exact: dict[str, Float[np.ndarray, " L"]] = {}
    capitalised: dict[str, Float[np.ndarray, " L"]] = {}
    length: int | None = None
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                    continue
                length = length or len(fields) - 1
                # Some words of GloVe hold spaces.
                word = " ".join(fields[:-length]) if length > 0 else ""
                if not word or len(fields) <= length:
                    message = f"line {number} does not hold a word and {length} numbers"
                    raise UserError(message, f"{path}:{number}", _FORMAT)
                if word in wanted and word not in exact:
                    exact[word] = _numbers(fields[-length:], path, number)
                elif word.lower() in wanted:
                    capitalised.setdefault(word.lower(), _numbers(fields[-length:], path, number))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"the word vectors cannot be read: {error}", str(path), _FORMAT) from error
    if length is None:
        raise UserError("the file holds no word vectors", str(path), _FORMAT)
    return capitalised | exact


def attribute_vectors(
    names: Sequence[str], vectors: Mapping[str, Float[np.ndarray, " L"]], unknown: UnknownWords
) -> Float[np.ndarray, "S L"]:
    """One vector per attribute: the mean over its name's words.

    Args:
        names: names of the attributes.
        vectors: vectors of the known words.
        unknown: treatment of other words; with `zero`, an attribute without a known word is all zeros.

    Raises:
        UserError: for an unknown word with `error`; always when all words are unknown.
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


def _numbers(fields: Sequence[str], path: Path, number: int) -> Float[np.ndarray, " L"]:
    try:
        vector = np.array([float(field) for field in fields])
    except ValueError as error:
        raise UserError(f"line {number} holds something other than numbers: {error}", f"{path}:{number}") from error
    if not np.isfinite(vector).all():
        raise UserError(f"line {number} holds a number that is not finite", f"{path}:{number}")
    return vector
