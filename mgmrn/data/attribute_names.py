"""What attributes are called: the makers' own lists, read from `attribute_names/<stem>/` beside the word vectors.

    attributes.txt, predicates.txt    a line per attribute: its number from 1, white space, its name (CUB, AWA2, SYN)
    attributes.mat                    a cell array `attributes` (SUN)

Names only show; no figure depends on them. So a data set without a list has numbered attributes, and that is no error.
"""

from __future__ import annotations

from pathlib import Path

from scipy.io import loadmat

from mgmrn.config import BenchmarkConfig
from mgmrn.data.xlsa17 import read_strings

_TEXTS = ("attributes.txt", "predicates.txt")
_CELLS = "attributes.mat"


def attribute_names(root: Path, config: BenchmarkConfig, count: int) -> tuple[str, ...]:
    """The names of a benchmark's attributes, in the order of its attribute vectors.

    Args:
        root: data root.
        config: names the benchmark.
        count: S; a list of another length is not this benchmark's.

    Returns:
        S names, no two alike; `attribute 1` and so on where there is no fitting list.
    """
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
    except Exception:  # scipy raises whatever a broken byte leads to; names are not worth a failed run.
        return ()
