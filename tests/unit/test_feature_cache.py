"""Cached maps are those of the backbone, and a cache is whole or absent, with several, interrupted and killed builders."""

import errno
import os
import shutil
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from mgmrn.config import BackboneConfig, BenchmarkConfig, ImageConfig
from mgmrn.data import feature_cache
from mgmrn.data.feature_cache import ensure_cache
from mgmrn.data.images import for_evaluation
from mgmrn.data.pictures import read_picture
from mgmrn.data.splits import load_final
from mgmrn.errors import ResourceError, UserError
from mgmrn.manifest import MANIFEST_FILE
from mgmrn.model.backbone import build_backbone
from tests.tiny import write_benchmark

SIZE = ImageConfig(size=32, resize="squash")
LEVELS = ("c4", "c5")
CPU = torch.device("cpu")
FEW, STRAIGHT = np.arange(6), np.zeros(6, dtype=bool)


def pictures_in(folder):
    """36 pictures: more than one batch, so that a builder can be stopped in the middle."""
    data = load_final(write_benchmark(folder), BenchmarkConfig(name="TINY"))
    return data.train.followed_by(data.seen)


@pytest.fixture(scope="module")
def all_images(tmp_path_factory):
    return pictures_in(tmp_path_factory.mktemp("data"))


@pytest.fixture
def images(all_images):
    return all_images.take(FEW)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def build(root, images, *, weights="none", config=SIZE, levels=LEVELS, flip=True, progress=lambda message: None):
    trunk = BackboneConfig(name="resnet18", weights=str(weights))
    return ensure_cache(root, images, config, trunk, levels, flip=flip, device=CPU, progress=progress)


def folders(root):
    return {path.name for path in root.iterdir() if path.is_dir()}


def direct(images, rows, *, mirrored=False):
    pictures = torch.stack([for_evaluation(read_picture(images.path(int(row))), SIZE) for row in rows])
    backbone = build_backbone(BackboneConfig(name="resnet18", weights="none"), LEVELS).eval()
    with torch.inference_mode():
        return backbone(pictures.flip(-1) if mirrored else pictures)


def test_maps_are_those_of_the_backbone_and_of_the_mirrored_pictures(root, all_images):
    rows, flips = np.array([35, 0, 7, 7, 20]), np.array([True, False, False, True, False])
    cache = build(root, all_images).take(rows)
    mixed = cache.maps(flips)
    for flip in (False, True):
        found, expected = cache.maps(np.full(len(rows), flip)), direct(all_images, rows, mirrored=flip)
        for level in LEVELS:
            assert found[level].dtype == torch.float16
            scale = expected[level].abs().max()
            assert scale > 0.1
            torch.testing.assert_close(found[level].float() / scale, expected[level] / scale, rtol=0, atol=1e-3)
            assert torch.equal(mixed[level][flips == flip], found[level][flips == flip])
    pooled = cache.pooled("c5")
    assert pooled.dtype == np.float32
    straight = cache.maps(np.zeros(5, dtype=bool))["c5"].float()
    np.testing.assert_allclose(pooled, straight.mean(dim=(2, 3)).numpy(), rtol=1e-5, atol=1e-7)


def test_all_that_changes_the_maps_and_nothing_else_changes_the_folder(root, images):
    weights, renamed = images.root.parent / "weights.pth", images.root.parent / "renamed.pth"
    torch.save(resnet18().state_dict(), weights)
    shutil.copy(weights, renamed)
    build(root, images, weights=weights, flip=False)
    build(root, images, weights=renamed, flip=False, config=SIZE.model_copy(update={"flip": False}))
    assert len(folders(root)) == len(LEVELS)
    changes = [{"images": images.take(rows)} for rows in (FEW[::-1], FEW[:5])]
    changes += [{"config": SIZE.model_copy(update=update)} for update in ({"size": 64}, {"resize": "crop"})]
    for number, changed in enumerate([*changes, {"weights": "none"}, {}], start=2):
        if not changed:
            os.utime(images.path(4), ns=(0, images.path(4).stat().st_mtime_ns + 1_000_000))
        build(root, flip=False, **{"images": images, "weights": weights} | changed)
        assert len(folders(root)) == number * len(LEVELS), changed


def test_a_broken_picture_is_named_and_nothing_is_left(root, tmp_path):
    images = pictures_in(tmp_path)
    cut(images.path(3))
    with pytest.raises(UserError, match=images.path(3).name):
        build(root, images)
    assert not folders(root)


@pytest.mark.parametrize("before", [True, False], ids=["before", "while writing"])
def test_too_small_a_disk_is_one_sentence_and_nothing_is_left(root, tmp_path, images, monkeypatch, before):
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    usage = feature_cache.shutil.disk_usage(tmp_path)
    if before:
        monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    else:
        monkeypatch.setattr(feature_cache.os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match="GiB free"):
        build(root, images)
    assert not folders(root)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def put_a_nan_and_restore_the_time(path):
    before = path.stat()
    np.load(path, mmap_mode="r+")[3, 3, 0, 0] = np.nan
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remove_the_manifest(path):
    (path.parent / MANIFEST_FILE).unlink()


DAMAGE = {
    cut: "straight.npy has",
    put_a_nan_and_restore_the_time: "straight.npy is not as it was written",
    Path.unlink: "straight.npy is missing",
    remove_the_manifest: "manifest.json is missing",
}


@pytest.fixture
def whole(root, images):
    build(root, images, flip=False)
    return [next(root.glob(f"*-{level}")) for level in LEVELS]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_named_and_made_again(root, images, whole, damage):
    damaged, other = whole
    content, untouched = (damaged / "straight.npy").read_bytes(), other.stat().st_ino
    damage(damaged / "straight.npy")
    said = []
    build(root, images, flip=False, progress=said.append)
    assert f"in {damaged} are damaged ({DAMAGE[damage]}" in said[0]
    assert said[0].endswith("they are removed and made again")
    assert (damaged / "straight.npy").read_bytes() == content and other.stat().st_ino == untouched
    assert folders(root) == {damaged.name, other.name}
    said.clear()
    build(root, images, flip=False, progress=said.append)
    assert not said


def test_a_reader_keeps_what_it_has_open_while_the_cache_is_made_again(root, images, whole):
    reader = build(root, images, flip=False)
    before = reader.maps(STRAIGHT)
    remove_the_manifest(whole[0] / "straight.npy")
    build(root, images, flip=False)
    for level, maps in reader.maps(STRAIGHT).items():
        assert torch.equal(maps, before[level])


def build_and_report(pipe, root, images):
    """Builds in another process; each message waits for an answer, and the maps come last."""
    torch.set_num_threads(1)
    pipe.send("started")

    def progress(message):
        pipe.send(message)
        pipe.recv()

    cache = build(root, images, progress=progress)
    pipe.send(cache.take(np.array([1, 34])).maps(np.array([False, True]))["c5"].numpy())


def told(pipe):
    assert pipe.poll(60), "the builder is silent"
    return pipe.recv()


def finish(pipe):
    """Messages until the end, and the maps."""
    messages = []
    while isinstance(message := told(pipe), str):
        messages.append(message)
        pipe.send("go on")
    return messages, message


@pytest.fixture
def builder(root, all_images):
    """Starts a builder in another process; returns the process and its pipe."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    started = []

    def start():
        pipe, theirs = context.Pipe()
        started.append(context.Process(target=build_and_report, args=(theirs, root, all_images), daemon=True))
        started[-1].start()
        theirs.close()
        assert told(pipe) == "started"
        return started[-1], pipe

    yield start
    for one in started:
        one.kill()


@pytest.mark.ray
@pytest.mark.parametrize("first_message", ["of 36", "are damaged"], ids=["missing", "damaged"])
def test_of_two_builders_one_works(root, all_images, builder, first_message):
    if first_message == "are damaged":
        build(root, all_images)
        cut(next(root.glob("*-c5-flips")) / "straight.npy")
    _, first = builder()
    assert first_message in told(first)
    _, second = builder()
    assert not second.poll(0.5), "the second builder did not wait"
    first.send("go on")
    (_, from_first), (messages, from_second) = finish(first), finish(second)
    assert messages == [] and np.array_equal(from_first, from_second)
    assert len(folders(root)) == len(LEVELS)


@pytest.mark.ray
def test_remains_of_a_killed_builder_are_no_cache(root, all_images, builder):
    process, first = builder()
    assert "32 of 36" in told(first)
    _, second = builder()
    left = folders(root)
    process.kill()
    messages, maps = finish(second)
    assert messages, "the second builder took the remains for a cache"
    assert len(left) == len(folders(root)) == len(LEVELS) and not left & folders(root)
    expected = torch.cat([direct(all_images, [1])["c5"], direct(all_images, [34], mirrored=True)["c5"]]).numpy()
    np.testing.assert_allclose(maps / expected.max(), expected / expected.max(), rtol=0, atol=1e-3)
