"""Reading of text files that users bring, and the true kind of a file that is not what its name says."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from mgmrn.errors import UserError

SNIFFED = 4096
"""Bytes of a file's begin that tell its kind."""
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_UNPACK = "unpack it, and name the file inside"
_FOREIGN = {
    rb"version https://git-lfs": ("a git-lfs pointer", "fetch the file itself with `git lfs pull`"),
    rb"(?i:(\xef\xbb\xbf)?\s*(<!doctype html|<html|<\?xml))": ("a web page", "download the file itself"),
    rb"MATLAB 7\.3 MAT-file": ("a MATLAB 7.3 file (HDF5)", "save it with -v7 in MATLAB"),
    rb"\x89HDF\r\n": ("an HDF5 file", ""),
    _GZIP: ("a gzip file", _UNPACK),
    rb"PK\x03\x04": ("a zip archive", _UNPACK),
    rb"BZh|\xfd7zXZ|7z\xbc\xaf": ("a packed file", _UNPACK),
    rb"\xba\x16O/": ("fastText's binary model", "take the text file of vectors, .vec"),
    rb"\d+ \d+\n.*[\0-\x08\x0e-\x1f]": ("word2vec's binary format", "convert it to word2vec's text format"),
}
"""Kinds of files by a pattern of their first bytes, each with a remedy, or none but the reader's."""
_UNDECODED = re.compile(r"[\udc80-\udcff]")
"""Bytes that are not UTF-8, as `surrogateescape` decodes them."""


def refuse_foreign(head: bytes, kind: str, path: Path, remedy: str) -> None:
    """Raises UserError when a file's first bytes show that it is no `kind` but a pointer, a page, an archive, …"""
    for pattern, (what, special_remedy) in _FOREIGN.items():
        if re.match(pattern, head, re.DOTALL):
            raise UserError(f"the {kind} is {what}", str(path), special_remedy or remedy)


def unreadable(kind: str, path: Path, error: Exception, remedy: str) -> UserError:
    """The error for a file of which a reader says `error`: what the file is instead, or the reader's own words."""
    try:
        with path.open("rb") as file:
            refuse_foreign(file.read(SNIFFED), kind, path, remedy)
    except UserError as foreign:
        return foreign
    except OSError as unopened:
        error = unopened
    return _failure(kind, path, error, remedy)


def _failure(kind: str, path: Path, error: Exception, remedy: str) -> UserError:
    words = getattr(error, "strerror", None) or str(error).partition("\n")[0] or type(error).__name__
    return UserError(f"the {kind} cannot be read: {words}", str(path), remedy)


def text_lines(path: Path, kind: str, remedy: str) -> Iterator[str]:
    r"""Lines of a text file, each ending in `\n`: UTF-8, or UTF-16 and UTF-32 with a byte order mark, gzipped or not.

    Raises UserError, with the line where there is one, for a file that is missing, damaged or no such text.
    """
    try:
        with path.open("rb") as file:
            packed = file.peek(2).startswith(_GZIP)
            # A GzipFile has the methods that are used here.
            content = cast(io.BufferedReader, gzip.GzipFile(fileobj=file)) if packed else file
            head = content.peek(SNIFFED)[:SNIFFED]
            refuse_foreign(head, kind, path, remedy)
            encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf-8")
            errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
            for number, line in enumerate(io.TextIOWrapper(content, encoding, errors), start=1):
                if "\0" in line or (not line.isascii() and _UNDECODED.search(line)):
                    message = f"line {number} of the {kind} is not UTF-8 text"
                    raise UserError(message, f"{path}:{number}", "save it as UTF-8")
                yield line
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise _failure(kind, path, error, remedy) from error


def read_text(path: Path, kind: str, remedy: str) -> str:
    """The whole text of a file; see `text_lines`."""
    return "".join(text_lines(path, kind, remedy))


def to_number(text: str) -> float:
    """A decimal number. Raises ValueError for any other text, underscores between digits included."""
    if "_" in text:
        raise ValueError(f"could not convert string to float: {text!r}")
    return float(text)
