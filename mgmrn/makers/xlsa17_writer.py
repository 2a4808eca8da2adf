"""Writes the xlsa17 "Proposed Splits" layout (Xian et al., TPAMI 2018, arXiv 1707.00600) as published."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Int
from scipy.io import savemat

from mgmrn.data.xlsa17 import LISTS, TEST_LISTS

_HEADER_TEXT = 116
"""Bytes of free text at the head of a MATLAB 5 file, into which scipy puts the time of day."""


def write_images_list(folder: Path, image_files: Sequence[str], labels: Int[np.ndarray, " I"]) -> None:
    """Writes `res101.mat` without features into `<root>/xlsa17/data/<NAME>`; labels from 0 are stored from 1."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_mat(folder / "res101.mat", {"image_files": _cell(image_files), "labels": _column(labels + 1)})


def write_splits(
    folder: Path,
    class_names: Sequence[str],
    attributes: Float[np.ndarray, "S U"],
    original_attributes: Float[np.ndarray, "S U"],
    lists: Mapping[str, Int[np.ndarray, " _"]],
) -> None:
    """Writes `att_splits.mat` into `<root>/xlsa17/data/<NAME>`.

    The attributes are `att` (unit columns in the published files) and `original_att`, a column per class name. The
    lists are image indices by names of `LISTS`, from 0, stored from 1; train and val may be missing.
    """
    assert {"trainval_loc", *TEST_LISTS} <= set(lists) <= set(LISTS)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"att": attributes, "original_att": original_attributes, "allclasses_names": _cell(class_names)}
    columns = {name: _column(indices + 1) for name, indices in lists.items()}
    _write_mat(folder / "att_splits.mat", content | columns)


def write_word_vectors(path: Path, vectors: Float[np.ndarray, "S L"]) -> None:
    """Writes the pickled numpy array from which published code reads its word vectors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(np.ascontiguousarray(vectors, dtype=np.float64), protocol=4))


def write_attribute_names(root: Path, name: str, attributes: Sequence[str]) -> None:
    """Writes `attribute_names/<NAME>/attributes.txt`, numbered from 1."""
    path = root / "attribute_names" / name / "attributes.txt"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{row} {name}\n" for row, name in enumerate(attributes, start=1)), encoding="utf-8")


def _write_mat(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a .mat file whose bytes depend on its content alone."""
    buffer = io.BytesIO()
    # scipy accepts open files too; its type stubs allow paths alone.
    savemat(cast(Any, buffer), dict(content), do_compression=True)
    text = b"MATLAB 5.0 MAT-file".ljust(_HEADER_TEXT)
    path.write_bytes(text + buffer.getvalue()[_HEADER_TEXT:])


def _cell(strings: Sequence[str]) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Strings as a MATLAB column cell array."""
    cell = np.empty((len(strings), 1), dtype=object)
    cell[:, 0] = list(strings)
    return cell


def _column(values: Int[np.ndarray, " I"]) -> Float[np.ndarray, "I 1"]:
    """A column of doubles, as MATLAB stores whole numbers too."""
    return np.asarray(values, dtype=np.float64)[:, None]
