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
    """`res101.mat` without features.

    Args:
        folder: `<root>/xlsa17/data/<NAME>`, which is made.
        image_files: paths as the data set's makers had them.
        labels: class index of every image, from 0; stored from 1 as in the published files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_mat(folder / "res101.mat", {"image_files": _cell(image_files), "labels": _column(labels + 1)})


def write_splits(
    folder: Path,
    class_names: Sequence[str],
    attributes: Float[np.ndarray, "S U"],
    original_attributes: Float[np.ndarray, "S U"],
    locations: Mapping[str, Int[np.ndarray, " _"]],
) -> None:
    """`att_splits.mat`.

    Args:
        folder: `<root>/xlsa17/data/<NAME>`, which is made.
        class_names: one per column of the attributes.
        attributes: what `att` holds, unit columns in the published files.
        original_attributes: what `original_att` holds.
        locations: by names of `LISTS` the images' indices, from 0; stored from 1. Train and val may be missing.
    """
    assert {"trainval_loc", *TEST_LISTS} <= set(locations) <= set(LISTS)
    folder.mkdir(parents=True, exist_ok=True)
    lists = {name: _column(indices + 1) for name, indices in locations.items()}
    content = {
        "att": attributes,
        "original_att": original_attributes,
        "allclasses_names": _cell(class_names),
        **lists,
    }
    _write_mat(folder / "att_splits.mat", content)


def write_word_vectors(path: Path, vectors: Float[np.ndarray, "S L"]) -> None:
    """The pickled numpy array that published code reads its word vectors from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(np.ascontiguousarray(vectors, dtype=np.float64), protocol=4))


def _write_mat(path: Path, content: Mapping[str, Any]) -> None:
    """A .mat file whose bytes depend on its content alone, so that its digest can name the data."""
    buffer = io.BytesIO()
    # scipy takes open files too; its type stubs know paths alone.
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
