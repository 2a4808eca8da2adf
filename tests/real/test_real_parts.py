"""The annotated parts of CUB100 are read for every test picture and lie in it."""

from collections import Counter

import pytest

from mgmrn.config import BenchmarkConfig
from mgmrn.data.splits import evaluation_images, load_final
from mgmrn.data.xlsa17 import attribute_names
from mgmrn.parts import read_parts

pytestmark = pytest.mark.real


def test_parts_of_cub100(data_root):
    config = BenchmarkConfig(name="CUB100", word_vectors="CUB")
    images = evaluation_images(load_final(data_root, config))
    parts = read_parts(images, attribute_names(data_root, config, 312))
    assert parts is not None and len(parts.pictures) == len(images) == 2470
    seen = Counter(name for found in parts.pictures.values() for name in found)
    assert len(seen) == 15 and min(seen.values()) > 1200 and seen["crown"] > 2400
    assert all(0 < one < 227 for found in parts.pictures.values() for part in found.values() for one in part.point)
    # Size, shape and primary colour name no part.
    assert sum(map(len, parts.groups.values())) == 312 - 5 - 14 - 15 and len(parts.groups) == 25
    labels = Counter(group.part for group in parts.groups)
    assert labels["beak"] == 3 and labels["tail"] == 4 and labels["wing"] == 3 and labels["head"] == 1
    assert all(set(group.annotated) <= seen.keys() for group in parts.groups)
