"""Names of attributes, from the data sets' own lists in `attribute_names/<stem>/` beside the word vectors.

    attributes.txt, predicates.txt    a line per attribute: its number from 1, white space, its name (CUB, AWA2, SYN)
    attributes.mat                    a cell array `attributes` (SUN)

Names are for display; no figure depends on them. A data set without a list has numbered attributes.
"""

from __future__ import annotations

from pathlib import Path

from scipy.io import loadmat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.xlsa17 import read_strings

_TEXTS = ("attributes.txt", "predicates.txt")
_CELLS = "attributes.mat"


def attribute_names(root: Path, config: BenchmarkConfig, count: int) -> tuple[str, ...]:
    """The `count` distinct names of a benchmark's attributes; `attribute 1`, … without a list of that length."""
    folder = root / "attribute_names" / (config.word_vectors or config.name)
    names = next((_read_lines(folder / name) for name in _TEXTS if (folder / name).is_file()), None)
    if names is None and (folder / _CELLS).is_file():
        names = _read_cells(folder / _CELLS)
    return names if names and len(names) == len(set(names)) == count else numbered_attributes(count)


def numbered_attributes(count: int) -> tuple[str, ...]:
    """Names for attributes that have none."""
    return tuple(f"attribute {number}" for number in range(1, count + 1))


def _read_lines(path: Path) -> tuple[str, ...]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(line.split(maxsplit=1)[-1].strip() for line in lines if line.strip())


def _read_cells(path: Path) -> tuple[str, ...]:
    try:
        return tuple(name.strip() for name in read_strings(loadmat(str(path))["attributes"]))
    except Exception:  # scipy raises many kinds of exception on broken bytes.
        return ()
