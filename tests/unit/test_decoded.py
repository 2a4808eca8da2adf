"""Packed pictures are those of the files, to the last bit; a store is whole or not there."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgmrn.config import ExperimentConfig
from mgmrn.data import decoded
from mgmrn.data.decoded import PictureFiles, ensure_packed
from mgmrn.data.splits import Images, load_final, load_tune
from mgmrn.errors import ResourceError, UserError
from mgmrn.feed import Share, open_feed
from pipeline.cache import build_caches
from pipeline.config.compose import load_experiment
from tests.tiny import write_benchmark
from tests.tmpfs import TMPFS, small_disk

CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path: Path) -> PictureFiles:
    """Of several sizes, modes and formats; one is turned by its EXIF tag, one so large that it is decoded at a quarter of its sides."""
    rng = np.random.default_rng(0)
    root = tmp_path / "pictures"
    root.mkdir()
    turned = Image.Exif()
    turned[274] = 6
    made: dict[str, tuple[tuple[int, ...], dict[str, object]]] = {
        "small.png": ((20, 31, 3), {}),
        "grey.png": ((33, 17), {}),
        "turned.jpg": ((40, 50, 3), {"exif": turned}),
        "large.jpg": ((130, 150, 3), {}),
    }
    for name, (shape, options) in made.items():
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(root / name, **options)
    count = len(made)
    return PictureFiles(Images(root, tuple(made), np.zeros(count, dtype=np.int64), np.arange(10, 10 + count)), 32)


def test_pictures_are_those_of_the_files(files: PictureFiles, tmp_path: Path) -> None:
    packed = ensure_packed(tmp_path / "cache", files, threads=2)
    for row in range(4):
        assert torch.equal(packed.picture(row), files.picture(row))
    assert packed.picture(2).shape == (3, 50, 40) and packed.picture(3).shape == (3, 33, 38)
    some = packed.take(np.array([3, 0]))
    assert some.ids.tolist() == [13, 10] and torch.equal(some.picture(1), files.picture(0))


def test_a_store_is_made_once_and_again_for_changed_pictures(
    files: PictureFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    ensure_packed(tmp_path / "cache", files, 1, messages.append)
    ensure_packed(tmp_path / "cache", files, 1, messages.append)
    assert messages == ["packing pictures: 4 of 4"]
    Image.new("RGB", (8, 9), "red").save(files.images.path(0))
    packed = ensure_packed(tmp_path / "cache", files, 1, messages.append)
    assert len(messages) == 2 and packed.picture(0).shape == (3, 9, 8)
    ensure_packed(tmp_path / "cache", PictureFiles(files.images, 64), 1, messages.append)
    assert len(messages) == 3, "another size that is needed is another store"


def test_another_process_is_sent_no_pixels(files: PictureFiles, tmp_path: Path) -> None:
    packed = ensure_packed(tmp_path / "cache", files, 1)
    packed.picture(3)
    sent = pickle.dumps(packed)
    assert len(sent) < 2000
    assert torch.equal(pickle.loads(sent).picture(3), files.picture(3))


def test_a_broken_picture_is_named_and_nothing_is_left(files: PictureFiles, tmp_path: Path) -> None:
    path = files.images.path(3)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"large\.jpg"):
        ensure_packed(tmp_path / "cache", files, 2)
    assert not [one for one in (tmp_path / "cache").iterdir() if one.is_dir()]


@TMPFS
def test_a_disk_that_fills_up_is_one_sentence_and_nothing_is_left(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (500, 500, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    images = Images(tmp_path, ("0.png", "1.png", "2.png"), np.zeros(3, dtype=np.int64), np.arange(3))
    with small_disk(tmp_path / "disk", megabytes=2) as disk:
        with pytest.raises(ResourceError, match="packed pictures do not fit on the disk"):
            ensure_packed(disk / "cache", PictureFiles(images, 32), 1)
        assert not [one for one in (disk / "cache").iterdir() if one.is_dir()]


def test_what_a_killed_builder_left_is_no_store(files: PictureFiles, tmp_path: Path) -> None:
    whole = ensure_packed(tmp_path / "elsewhere", files, 1)
    left = tmp_path / "cache" / f".{whole.pixels.parent.name}.part"
    left.mkdir(parents=True)
    (left / decoded.PIXELS).write_bytes(b"half")
    packed = ensure_packed(tmp_path / "cache", files, 1)
    assert torch.equal(packed.picture(0), files.picture(0)) and not left.exists()


def cut(folder: Path) -> None:
    (folder / decoded.PIXELS).write_bytes((folder / decoded.PIXELS).read_bytes()[:-1])


def turn_a_pixel(folder: Path) -> None:
    content = bytearray((folder / decoded.PIXELS).read_bytes())
    content[100] ^= 1
    (folder / decoded.PIXELS).write_bytes(content)


def remove_the_index(folder: Path) -> None:
    (folder / decoded.INDEX).unlink()


@pytest.mark.parametrize("damage", [cut, turn_a_pixel, remove_the_index])
def test_a_damaged_store_is_named_and_made_again(
    files: PictureFiles, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = ensure_packed(tmp_path / "cache", files, 1).pixels.parent
    damage(folder)
    messages: list[str] = []
    packed = ensure_packed(tmp_path / "cache", files, 1, messages.append)
    assert messages[0].startswith(f"the packed pictures in {folder} are damaged (") and len(messages) == 2
    assert all(torch.equal(packed.picture(row), files.picture(row)) for row in range(4))


@pytest.mark.parametrize("load", [load_tune, load_final], ids=["tune", "final"])
@pytest.mark.parametrize("min_crop_area, loader_workers", [(1.0, 0), (0.3, 2)])
def test_a_run_is_given_the_same_tensors(
    load: Callable[..., object], min_crop_area: float, loader_workers: int, tmp_path: Path
) -> None:
    data = load(write_benchmark(tmp_path / "data", size=100), config(False, min_crop_area).benchmark)
    feeds = [
        open_feed(config(packed, min_crop_area), data, tmp_path / "cache", Share(), CPU, loader_workers)
        for packed in (False, True)
    ]
    for epoch in range(2):
        for one, other in zip(*(feed.train_batches(epoch) for feed in feeds), strict=True):
            assert torch.equal(one.inputs, other.inputs) and (one.ids == other.ids).all()
    for one, other in zip(*(feed.evaluation_inputs() for feed in feeds), strict=True):
        assert torch.equal(one, other)


def test_both_splits_share_the_pictures_that_may_be_trained_on(tmp_path: Path) -> None:
    root = write_benchmark(tmp_path / "data")
    counts = build_caches(config(True), root, tmp_path / "cache", lambda message: None)
    assert counts == {"tune": 24, "final": 24 + 12 + 18}
    assert len([one for one in (tmp_path / "cache").iterdir() if one.is_dir()]) == 2


@pytest.mark.parametrize("name, override", [("cub100", "cache_features=true"), ("cub-eszsl", "cache_features=false")])
def test_it_is_refused_where_each_picture_is_decoded_once(name: str, override: str) -> None:
    with pytest.raises(UserError, match="saves nothing where each picture is decoded once"):
        load_experiment(name, [override, "cache_pictures=true"])


def config(packed: bool, min_crop_area: float = 1.0) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "benchmark": {"name": "TINY", "images": {"size": 32, "min_crop_area": min_crop_area}},
            "model": {
                "kind": "mgmrn",
                "backbone": {"name": "resnet18", "weights": "none", "trainable": "all"},
                "levels": ["c5"],
                "width": 32,
            },
            "sampling": {"kind": "plain", "batch": 5},
            "cache_pictures": packed,
        }
    )
