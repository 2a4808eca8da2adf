"""The guide names all that the loader needs, and the doctor knows the published lists when it sees them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mgmrn.config import BenchmarkConfig
from mgmrn.data.doctor import verify
from mgmrn.data.published import PUBLISHED, PublishedSplits, splits_digest
from mgmrn.data.xlsa17 import load_benchmark
from mgmrn.errors import UserError
from pipeline.cli.app import main
from pipeline.cli.guide import PHOTOGRAPHS, guide, lines
from tests.tiny import write_benchmark


@pytest.mark.parametrize("name", ["cub", "SUN", "awa2"])
def test_every_benchmark_has_pictures_lists_and_words(name: str, tmp_path: Path) -> None:
    found = guide(name, tmp_path)
    assert [item.there for item in found.items] == [False] * 3
    assert all(item.page.startswith("https://") and item.size and item.terms for item in found.items)
    text = "\n".join(lines(found))
    assert f"{found.splits.images:,} pictures" in text and found.verify in text
    for item in found.items:
        (tmp_path / item.place).parent.mkdir(parents=True, exist_ok=True)
    photographs, lists, words = (tmp_path / item.place for item in found.items)
    photographs.mkdir()
    lists.mkdir()
    (lists / "res101.mat").touch()
    words.touch()
    assert [item.there for item in guide(name, tmp_path).items] == [True, False, True]
    (lists / "att_splits.mat").touch()
    assert all(item.there for item in guide(name, tmp_path).items)


def test_the_benchmarks_of_the_guide_are_those_whose_lists_are_known() -> None:
    assert PHOTOGRAPHS.keys() == PUBLISHED.keys()
    assert {name: one.images for name, one in PUBLISHED.items()} == {"CUB": 11788, "SUN": 14340, "AWA2": 37322}


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "guide", "cub", "--data-root", str(tmp_path), "--json"]) == 0
    output = capsys.readouterr()
    answer = json.loads(output.out)
    assert answer["splits"]["digest"] == PUBLISHED["CUB"].digest and len(answer["items"]) == 3
    assert "CUB_200_2011.tgz" in output.err
    assert main(["data", "guide", "imagenet", "--json"]) == 2
    assert "data import" in json.loads(capsys.readouterr().out)["hint"]
    with pytest.raises(UserError):
        guide("imagenet", tmp_path)


def test_a_digest_is_of_what_is_in_which_list_and_not_of_their_order() -> None:
    files, names = ("a.jpg", "b.jpg", "c.jpg"), ("x", "y")
    labels = np.array([0, 0, 1])
    lists = {
        "trainval_loc": np.array([1, 0]),
        "test_seen_loc": np.array([], dtype=int),
        "test_unseen_loc": np.array([2]),
    }
    known = splits_digest(files, labels, names, lists)
    assert splits_digest(files, labels, names, lists | {"trainval_loc": np.array([0, 1])}) == known
    assert splits_digest(files, labels, names, lists | {"train_loc": np.array([1])}) == known
    others = [
        splits_digest(files, labels, names, lists | {"trainval_loc": np.array([0, 2])}),
        splits_digest(files, labels[::-1].copy(), names, lists),
        splits_digest(files, labels, names[::-1], lists),
        splits_digest(files[::-1], labels, names, lists),
    ]
    assert known not in others and len(set(others)) == 4


def test_the_doctor_knows_published_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_benchmark(tmp_path, "CUB")

    def finding() -> str:
        (found,) = [one for one in verify(root, BenchmarkConfig(name="CUB")) if one.check == "published lists"]
        return f"{found.level}: {found.detail}"

    told = finding()
    assert told.startswith("warning: images, labels or lists are not those of the Proposed Splits of CUB")
    short = told.rpartition("(")[2].rstrip(")")
    assert len(short) == 12 and short not in PUBLISHED["CUB"].digest
    benchmark = load_benchmark(root, BenchmarkConfig(name="CUB"))
    digest = splits_digest(benchmark.image_files, benchmark.labels, benchmark.class_names, benchmark.lists)
    monkeypatch.setitem(PUBLISHED, "CUB", PublishedSplits(7, 6, 3, 24, 12, 18, digest))  # type: ignore[arg-type]
    assert finding() == f"ok: the Proposed Splits of CUB, {digest[:12]}"


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.*all zeros")
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_lists_at_hand_are_the_published_ones(name: str, data_root: Path) -> None:
    benchmark = load_benchmark(data_root, BenchmarkConfig(name=name))
    digest = splits_digest(benchmark.image_files, benchmark.labels, benchmark.class_names, benchmark.lists)
    assert digest == PUBLISHED[name].digest
