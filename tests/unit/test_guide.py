"""The guide names all that the loader reads, and the doctor recognises the published lists."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgmrn.config import BenchmarkConfig
from mgmrn.data.doctor import verify
from mgmrn.data.published import PUBLISHED, PublishedSplits, splits_digest
from mgmrn.data.xlsa17 import Benchmark, lists_folder, load_benchmark, word_vector_file
from tests.tiny import write_benchmark


def digest_of(benchmark: Benchmark) -> str:
    return splits_digest(benchmark.image_files, benchmark.labels, benchmark.class_names, benchmark.lists)


@pytest.mark.parametrize("name", ["cub", "SUN", "awa2"])
def test_a_guide_lists_pictures_lists_and_words(name: str, tmp_path: Path, typed: Any) -> None:
    def guide() -> dict[str, Any]:
        return json.loads(typed("data", "guide", name, "--data-root", str(tmp_path), "--json")[1])

    found, published = guide(), PUBLISHED[name.upper()]
    assert found.keys() == {"title", "pretraining", "items", "splits", "verify"}
    assert found["pretraining"].keys() == {"ImageNet-1k", "ImageNet-21k", "LVD-142M (DINOv2)", "WIT, LAION (CLIP)"}
    assert found["splits"] == vars(published) | {"images": published.images}
    keys = {"what", "page", "size", "terms", "place", "hint", "there"}
    assert all(item.keys() == keys and item["page"].startswith("https://") for item in found["items"])
    lists, words = lists_folder(tmp_path, name.upper()), word_vector_file(tmp_path, BenchmarkConfig(name=name.upper()))
    assert [tmp_path / item["place"] for item in found["items"][1:]] == [lists, words]
    for folder in (tmp_path / found["items"][0]["place"], lists, words.parent):
        folder.mkdir(parents=True)
    (lists / "res101.mat").touch()
    words.touch()
    assert [item["there"] for item in found["items"] + guide()["items"]] == [False, False, False, True, False, True]


def test_a_digest_is_of_what_is_in_which_list_and_not_of_their_order() -> None:
    files, names, labels = ("a.jpg", "b.jpg", "c.jpg"), ("x", "y"), np.array([0, 0, 1])
    lists = {"trainval_loc": np.array([1, 0]), "test_seen_loc": np.array([], int), "test_unseen_loc": np.array([2])}
    known = splits_digest(files, labels, names, lists)
    assert splits_digest(files, labels, names, lists | {"trainval_loc": np.array([0, 1])}) == known
    assert splits_digest(files, labels, names, lists | {"train_loc": np.array([1])}) == known
    others = [
        splits_digest(files, labels, names, lists | {"trainval_loc": np.array([0, 2])}),
        splits_digest(files, labels[::-1].copy(), names, lists),
        splits_digest(files, labels, names[::-1], lists),
        splits_digest(files[::-1], labels, names, lists),
    ]
    assert len({known, *others}) == 5


def test_the_doctor_knows_published_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_benchmark(tmp_path, "CUB", pictures=False)

    def finding() -> str:
        (found,) = [one for one in verify(root, BenchmarkConfig(name="CUB")) if one.check == "published lists"]
        return f"{found.level}: {found.detail}"

    assert finding().startswith("warning: images, labels or lists are not those of the Proposed Splits of CUB")
    digest = digest_of(load_benchmark(root, BenchmarkConfig(name="CUB")))
    monkeypatch.setitem(PUBLISHED, "CUB", PublishedSplits(7, 6, 3, 24, 12, 18, digest))  # type: ignore[arg-type]
    assert finding() == f"ok: the Proposed Splits of CUB, {digest[:12]}"


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.*all zeros")
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_lists_at_hand_are_the_published_ones(name: str, data_root: Path) -> None:
    assert digest_of(load_benchmark(data_root, BenchmarkConfig(name=name))) == PUBLISHED[name].digest


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.*all zeros")
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_guide_counts_the_unseen_classes_that_pretraining_names(name: str, data_root: Path, typed: Any) -> None:
    from timm.data import ImageNetInfo

    def plain(text: str) -> str:
        return re.sub("[^a-z]+", " ", text.lower()).strip()

    benchmark = load_benchmark(data_root, BenchmarkConfig(name=name))
    unseen = {plain(benchmark.class_names[row]) for row in benchmark.labels[benchmark.lists["test_unseen_loc"]]}
    seen = json.loads(typed("data", "guide", name, "--json")[1])["pretraining"]
    for corpus, labels in (("ImageNet-1k", "imagenet-1k"), ("ImageNet-21k", "imagenet-22k")):
        names = [plain(one) for text in ImageNetInfo(labels).label_descriptions() for one in text.split(", ")]
        count = len(unseen & set(names))
        words = (
            "none"
            if count == 0
            else f"all {count}"
            if count == len(unseen)
            else f"at least {count} of the {len(unseen)}"
        )
        assert seen[corpus].startswith(words)
