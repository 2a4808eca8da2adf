"""Sizes and digests of the benchmarks' published lists (Xian et al., TPAMI 2018, arXiv 1707.00600).

A digest covers the content of the lists, not the file. It leaves out train and val, which are wrong in early releases
and rebuilt on loading.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from mgmrn.data.xlsa17 import TEST_LISTS


@dataclass(frozen=True)
class PublishedSplits:
    """The Proposed Splits of one benchmark."""

    attributes: int
    seen: int
    """Number of classes, as `unseen`."""
    unseen: int
    trainval: int
    """Number of images, as `test_seen` and `test_unseen`."""
    test_seen: int
    test_unseen: int
    digest: str
    """Value of `splits_digest`."""

    @property
    def images(self) -> int:
        return self.trainval + self.test_seen + self.test_unseen


PUBLISHED: Mapping[str, PublishedSplits] = {
    "CUB": PublishedSplits(
        312, 150, 50, 7057, 1764, 2967, "379f08d224dff13bf80df5bb39a44debfb8a6900af75f26193a663d90977e006"
    ),
    "SUN": PublishedSplits(
        102, 645, 72, 10320, 2580, 1440, "cfcc73524b9712ac1c28c47e1fc6241117d2e69a8365a012863fc4029884fc1c"
    ),
    "AWA2": PublishedSplits(
        85, 40, 10, 23527, 5882, 7913, "c7e06ab471bf8c0acd64e07cc54834f0f18d4763ad9f5ad09fcb8c5c7a15f3f9"
    ),
}


def splits_digest(
    files: Sequence[str],
    labels: Int[np.ndarray, " I"],
    class_names: Sequence[str],
    lists: Mapping[str, Int[np.ndarray, " _"]],
) -> str:
    """sha256 of each image's class and list, independent of the order within a list; arguments as in `xlsa17.Benchmark`."""
    digest = hashlib.sha256()
    for strings in (files, class_names):
        digest.update("\n".join(strings).encode() + b"\0")
    for array in (labels, *(np.sort(lists[name]) for name in ("trainval_loc", *TEST_LISTS))):
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes() + b"\0")
    return digest.hexdigest()
