"""Packed pictures are those of the files, bit by bit; a store is whole or absent."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgmrn.data import decoded
from mgmrn.data.decoded import PictureFiles, ensure_packed
from mgmrn.data.splits import Images
from mgmrn.errors import ResourceError, UserError
from pipeline.cli.data_verbs import build_caches
from pipeline.config.compose import load_experiment
from tests.tiny import write_benchmark
from tests.tmpfs import TMPFS, small_disk


@pytest.fixture
def files(tmp_path: Path) -> PictureFiles:
    """Pictures of several sizes and modes; one is turned by its EXIF tag, one is decoded at a quarter of its sides."""
    rng = np.random.default_rng(0)
    root = tmp_path / "pictures"
    root.mkdir()
    turned = Image.Exif()
    turned[274] = 6
    shapes = {"small.png": (20, 31, 3), "grey.png": (33, 17), "turned.jpg": (40, 50, 3), "large.jpg": (130, 150, 3)}
    for name, shape in shapes.items():
        exif = {"exif": turned} if name == "turned.jpg" else {}
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(root / name, **exif)
    return PictureFiles(Images(root, tuple(shapes), np.zeros(4, dtype=np.int64), np.arange(10, 14)), 32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def folders(root: Path) -> list[Path]:
    return [one for one in root.iterdir() if one.is_dir()]


def test_pictures_are_those_of_the_files(files: PictureFiles, root: Path) -> None:
    packed = ensure_packed(root, files, threads=2)
    for row in range(4):
        assert torch.equal(packed.picture(row), files.picture(row))
    assert packed.picture(2).shape == (3, 50, 40) and packed.picture(3).shape == (3, 33, 38)
    some = packed.take(np.array([3, 0]))
    assert some.ids.tolist() == [13, 10] and torch.equal(some.picture(1), files.picture(0))
    sent = pickle.dumps(packed)
    assert len(sent) < 2000, "no pixels are sent to another process"
    assert torch.equal(pickle.loads(sent).picture(3), files.picture(3))


def test_a_store_is_made_once_and_again_for_changed_pictures(files: PictureFiles, root: Path) -> None:
    messages: list[str] = []
    for _ in range(2):
        ensure_packed(root, files, 1, messages.append)
    assert messages == ["packing pictures: 4 of 4"]
    Image.new("RGB", (8, 9), "red").save(files.images.path(0))
    packed = ensure_packed(root, files, 1, messages.append)
    assert len(messages) == 2 and packed.picture(0).shape == (3, 9, 8)
    ensure_packed(root, PictureFiles(files.images, 64), 1, messages.append)
    assert len(messages) == 3, "another needed size is another store"


def test_a_broken_picture_is_named_and_nothing_is_left(files: PictureFiles, root: Path) -> None:
    path = files.images.path(3)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"large\.jpg"):
        ensure_packed(root, files, 2)
    assert not folders(root)


@TMPFS
def test_a_disk_that_fills_up_is_one_sentence_and_nothing_is_left(files: PictureFiles, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(files.images.path(0))
    with small_disk(tmp_path / "disk", megabytes=2) as disk:
        with pytest.raises(ResourceError, match="packed pictures do not fit on the disk"):
            ensure_packed(disk / "cache", files, 1)
        assert not folders(disk / "cache")


def test_remains_of_a_killed_builder_are_no_store(files: PictureFiles, tmp_path: Path, root: Path) -> None:
    whole = ensure_packed(tmp_path / "elsewhere", files, 1)
    left = root / f".{whole.pixels.parent.name}.part"
    left.mkdir(parents=True)
    (left / decoded.PIXELS).write_bytes(b"half")
    packed = ensure_packed(root, files, 1)
    assert torch.equal(packed.picture(0), files.picture(0)) and not left.exists()


@pytest.mark.parametrize("file", [decoded.PIXELS, decoded.INDEX])
def test_a_damaged_store_is_named_and_made_again(files: PictureFiles, root: Path, file: str) -> None:
    folder = ensure_packed(root, files, 1).pixels.parent
    content = bytearray((folder / file).read_bytes())
    content[100] ^= 1
    (folder / file).write_bytes(content)
    messages: list[str] = []
    packed = ensure_packed(root, files, 1, messages.append)
    assert messages[0].startswith(f"the packed pictures in {folder} are damaged (") and len(messages) == 2
    assert all(torch.equal(packed.picture(row), files.picture(row)) for row in range(4))


def test_both_splits_share_the_pictures_of_seen_classes(tmp_path: Path, root: Path) -> None:
    changes = ["benchmark.name=TINY", "cache_features=false", "cache_pictures=true", "model.backbone.weights=none"]
    config = load_experiment("synthetic", changes).config
    counts = build_caches(config, write_benchmark(tmp_path / "data"), root, lambda message: None)
    assert counts == {"tune": 24, "final": 24 + 12 + 18}
    assert len(folders(root)) == 2


def test_packing_is_refused_where_each_picture_is_decoded_once() -> None:
    for name, override in (("cub100", "cache_features=true"), ("cub-eszsl", "cache_features=false")):
        with pytest.raises(UserError, match="saves nothing where each picture is decoded once"):
            load_experiment(name, [override, "cache_pictures=true"])
