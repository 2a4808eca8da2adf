"""The published split files of the benchmarks load with the published counts."""

import numpy as np
import pytest

from mgmrn.config import BenchmarkConfig
from mgmrn.data.splits import check_images_exist, load_final
from mgmrn.data.xlsa17 import load_benchmark

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore:.*all zeros")]

# name: attributes, seen, unseen classes, trainval, test_seen, test_unseen, train (classes), val (classes)
COUNTS = {
    "CUB": (312, 150, 50, 7057, 1764, 2967, 4702, 100, 2355, 50),
    "SUN": (102, 645, 72, 10320, 2580, 1440, 9280, 580, 1040, 65),
    "AWA2": (85, 40, 10, 23527, 5882, 7913, 16187, 27, 7340, 13),
    "CUB100": (312, 73, 27, 3432, 860, 1610, 2210, 47, 1222, 26),
}


def config(name: str) -> BenchmarkConfig:
    return BenchmarkConfig(name=name, word_vectors="CUB" if name == "CUB100" else None)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_folders_of_the_published_lists(data_root, name):
    benchmark = load_benchmark(data_root, config(name))
    lists, labels = benchmark.lists, benchmark.labels
    found = (
        benchmark.attributes.shape[1],
        *(len(set(labels[lists[part]])) for part in ("trainval_loc", "test_unseen_loc")),
        *(len(lists[f"{part}_loc"]) for part in ("trainval", "test_seen", "test_unseen")),
        *(count for part in ("train_loc", "val_loc") for count in (len(lists[part]), len(set(labels[lists[part]])))),
    )
    assert found == COUNTS[name]
    assert benchmark.word_vectors.shape == (COUNTS[name][0], 300)
    for file, label in zip(benchmark.image_files[::97], labels[::97], strict=True):
        words = benchmark.class_names[label].lower().replace("+", "_").split(".")[-1].split("_")
        assert all(word in file.lower() for word in words), (file, words)
    assert name != "CUB" or list(benchmark.class_names) != sorted(benchmark.class_names), "the order is not numeric"


def test_sun_has_one_attribute_without_a_word(data_root):
    with pytest.warns(UserWarning, match=r"\[88\]"):
        vectors = load_benchmark(data_root, config("SUN")).word_vectors
    assert np.flatnonzero(~vectors.any(axis=1)).tolist() == [88]


def test_the_pictures_of_cub100_are_there(data_root):
    data = load_final(data_root, config("CUB100"))
    for images in (data.train, data.seen, data.unseen):
        check_images_exist(images)
