"""Cached maps are the backbone's own, whoever builds them, however often, and whatever happens to the builder."""

import errno
import os
import signal
from multiprocessing import get_context

import numpy as np
import pytest
import torch
from torchvision.models import mobilenet_v2

from mgmrn.config import BackboneConfig, ImageConfig
from mgmrn.data import feature_cache, kept
from mgmrn.data.feature_cache import ensure_cache
from mgmrn.data.images import decode, for_evaluation
from mgmrn.data.kept import forget_checks
from mgmrn.data.splits import load_final
from mgmrn.errors import ResourceError, UserError
from mgmrn.manifest import MANIFEST_FILE
from mgmrn.model.backbone import build_backbone
from tests.tiny import write_benchmark

SIZE = ImageConfig(size=64, resize="squash")
LEVELS = ("c4", "c5")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights") / "trunk.pth", seed=0)


def save_weights(path, seed):
    """Random weights whose batch norms fit them: without that the activations vanish below what float16 can hold."""
    torch.manual_seed(seed)
    model = mobilenet_v2(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(16, 3, 64, 64))
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def images(tmp_path):
    """36 pictures: more than one batch, so that a builder can be stopped in the middle."""
    from mgmrn.config import BenchmarkConfig

    data = load_final(write_benchmark(tmp_path / "data"), BenchmarkConfig(name="TINY"))
    return data.train.followed_by(data.seen)


@pytest.fixture(autouse=True)
def data_folder(tmp_path):
    (tmp_path / "data").mkdir()


def trunk(weights):
    return BackboneConfig(name="mobilenet_v2", weights=str(weights))


def build(root, images, weights, *, config=SIZE, levels=LEVELS, flip=True, progress=lambda message: None):
    return ensure_cache(root, images, config, trunk(weights), levels, flip=flip, device=CPU, progress=progress)


def folders(root):
    return {path.name for path in root.iterdir() if path.is_dir()}


def direct(images, weights, rows, *, mirrored=False):
    pictures = torch.stack([for_evaluation(decode(images.path(int(row))), SIZE) for row in rows])
    with torch.inference_mode():
        return build_backbone(trunk(weights), LEVELS).eval()(pictures.flip(-1) if mirrored else pictures)


def test_maps_are_those_of_the_backbone_and_of_the_mirrored_pictures(tmp_path, images, weights):
    cache = build(tmp_path / "cache", images, weights)
    rows = np.array([35, 0, 7, 7, 20])
    for mirrored in (False, True):
        found = cache.maps(rows, np.full(len(rows), mirrored))
        for level, expected in direct(images, weights, rows, mirrored=mirrored).items():
            assert found[level].dtype == torch.float16
            scale = expected.abs().max()
            assert scale > 0.1
            torch.testing.assert_close(found[level].float() / scale, expected / scale, rtol=0, atol=1e-3)
    straight, turned = (direct(images, weights, [0], mirrored=m)["c4"] for m in (False, True))
    assert (straight - turned).abs().max() > 0.05 * straight.abs().max()


def test_a_batch_may_mix_straight_and_mirrored_rows(tmp_path, images, weights):
    cache = build(tmp_path / "cache", images, weights)
    rows, mirrored = np.array([3, 1, 3, 30]), np.array([True, False, False, True])
    for level, mixed in cache.maps(rows, mirrored).items():
        for i, (row, flip) in enumerate(zip(rows, mirrored, strict=True)):
            assert torch.equal(mixed[i], cache.maps(rows[i : i + 1], np.array([flip]))[level][0]), (level, row)


def test_pooled_is_the_mean_of_the_maps(tmp_path, images, weights):
    cache = build(tmp_path / "cache", images, weights, flip=False)
    rows = np.arange(len(images))
    maps = cache.maps(rows, np.zeros(len(rows), dtype=bool))["c5"].float()
    pooled = cache.pooled("c5")
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, maps.mean(dim=(2, 3)).numpy(), rtol=1e-5, atol=1e-7)


def test_the_second_time_nothing_is_computed(tmp_path, images, weights, monkeypatch):
    first = build(tmp_path / "cache", images, weights)
    monkeypatch.setattr(feature_cache, "build_backbone", lambda *_: pytest.fail("the backbone was built again"))
    second = build(tmp_path / "cache", images, weights)
    rows, straight = np.array([2, 9]), np.zeros(2, dtype=bool)
    assert torch.equal(first.maps(rows, straight)["c4"], second.maps(rows, straight)["c4"])


def test_a_level_more_computes_that_level_alone(tmp_path, images, weights, monkeypatch):
    build(tmp_path / "cache", images, weights, levels=("c5",))
    asked = []

    def spy(config, levels):
        asked.append(tuple(levels))
        return build_backbone(config, levels)

    monkeypatch.setattr(feature_cache, "build_backbone", spy)
    build(tmp_path / "cache", images, weights)
    assert asked == [("c4",)]


def other_pixels(images, weights):
    path = images.path(4)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    return {"images": images, "weights": weights}


def other_order(images, weights):
    return {"images": images.take(np.arange(len(images))[::-1]), "weights": weights}


def fewer_images(images, weights):
    return {"images": images.take(np.arange(35)), "weights": weights}


def other_size(images, weights):
    return {"images": images, "weights": weights, "config": SIZE.model_copy(update={"size": 96})}


def other_resize(images, weights):
    return {"images": images, "weights": weights, "config": SIZE.model_copy(update={"resize": "crop"})}


def other_weights(images, weights):
    return {"images": images, "weights": save_weights(images.root.parent / "other.pth", seed=1)}


def other_taps(images, weights):
    return {"images": images, "weights": weights, "levels": ("c3",)}


@pytest.mark.parametrize(
    "change", [other_pixels, other_order, fewer_images, other_size, other_resize, other_weights, other_taps]
)
def test_whatever_changes_the_maps_changes_the_folder(tmp_path, images, weights, change):
    build(tmp_path / "cache", images, weights, flip=False)
    before = folders(tmp_path / "cache")
    changed = change(images, weights)
    build(tmp_path / "cache", flip=False, **changed)
    assert len(folders(tmp_path / "cache") - before) == len(changed.get("levels", LEVELS))


def test_what_does_not_change_the_maps_keeps_the_folder(tmp_path, images, weights):
    build(tmp_path / "cache", images, weights)
    before = folders(tmp_path / "cache")
    renamed = weights.with_name("renamed.pth")
    renamed.write_bytes(weights.read_bytes())
    build(tmp_path / "cache", images, renamed, config=SIZE.model_copy(update={"flip": False}))
    assert folders(tmp_path / "cache") == before


def test_the_stores_are_read_only_maps_of_files(tmp_path, images, weights):
    cache = build(tmp_path / "cache", images, weights)
    for store in cache.stores.values():
        for array in (store.straight, store.mirrored):
            assert isinstance(array, np.memmap)
            assert array.dtype == np.float16
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0


def test_a_gathered_batch_is_the_callers_own(tmp_path, images, weights):
    cache = build(tmp_path / "cache", images, weights)
    rows, straight = np.array([5]), np.zeros(1, dtype=bool)
    before = cache.maps(rows, straight)["c4"].clone()
    cache.maps(rows, straight)["c4"].zero_()
    assert torch.equal(cache.maps(rows, straight)["c4"], before)


def test_a_broken_picture_is_named_and_nothing_is_left(tmp_path, images, weights):
    path = images.path(33)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=path.name):
        build(tmp_path / "cache", images, weights)
    assert not folders(tmp_path / "cache")


def test_too_small_a_disk_is_one_sentence_and_nothing_is_left(tmp_path, images, weights, monkeypatch):
    usage = feature_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="free"):
        build(tmp_path / "cache", images, weights)
    assert not folders(tmp_path / "cache")


def test_a_disk_that_fills_up_meanwhile_is_one_sentence_too(tmp_path, images, weights, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(feature_cache.os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match="GiB"):
        build(tmp_path / "cache", images, weights)
    assert not folders(tmp_path / "cache")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit_and_restore_the_time(path):
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_a_nan(path):
    np.load(path, mmap_mode="r+")[7, 3, 1, 1] = np.nan


def remove(path):
    path.unlink()


def remove_the_manifest(path):
    """As in a cache of a version that wrote none."""
    (path.parent / MANIFEST_FILE).unlink()


DAMAGE = {
    cut: "straight.npy has",
    flip_a_bit_and_restore_the_time: "straight.npy is not as it was written",
    put_a_nan: "straight.npy is not as it was written",
    remove: "straight.npy is missing",
    remove_the_manifest: "manifest.json is missing",
}


@pytest.fixture
def whole(tmp_path, images, weights):
    """Folders of the two levels of a whole cache."""
    build(tmp_path / "cache", images, weights, flip=False)
    return [next((tmp_path / "cache").glob(f"*-{level}")) for level in LEVELS]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_named_and_made_again(tmp_path, images, weights, whole, damage):
    damaged, other = whole
    content, untouched = (damaged / "straight.npy").read_bytes(), other.stat().st_ino
    damage(damaged / "straight.npy")
    said = []
    build(tmp_path / "cache", images, weights, flip=False, progress=said.append)
    assert f"in {damaged} are damaged ({DAMAGE[damage]}" in said[0]
    assert said[0].endswith("they are removed and made again")
    assert (damaged / "straight.npy").read_bytes() == content and other.stat().st_ino == untouched
    assert folders(tmp_path / "cache") == {damaged.name, other.name}
    said.clear()
    build(tmp_path / "cache", images, weights, flip=False, progress=said.append)
    assert not said


def test_content_is_read_when_a_file_changed_and_only_then(tmp_path, images, weights, whole, monkeypatch):
    read = []
    monkeypatch.setattr(kept, "find_damage", lambda folder: read.append(folder))
    build(tmp_path / "cache", images, weights, flip=False)
    assert read == []
    os.utime(whole[0] / "straight.npy")
    for _ in range(2):
        build(tmp_path / "cache", images, weights, flip=False)
    assert read == [whole[0]]
    forget_checks(tmp_path / "cache")
    build(tmp_path / "cache", images, weights, flip=False)
    assert read[1:] == whole


def test_a_reader_keeps_what_it_has_open_while_the_cache_is_made_again(tmp_path, images, weights, whole):
    reader = build(tmp_path / "cache", images, weights, flip=False)
    rows, straight = np.arange(len(images)), np.zeros(len(images), dtype=bool)
    before = reader.maps(rows, straight)
    remove_the_manifest(whole[0] / "straight.npy")
    build(tmp_path / "cache", images, weights, flip=False)
    for level, maps in reader.maps(rows, straight).items():
        assert torch.equal(maps, before[level])


def test_a_damaged_cache_with_flips_is_no_hindrance_for_one_without(tmp_path, images, weights):
    build(tmp_path / "cache", images, weights, levels=("c5",))
    cut(next((tmp_path / "cache").glob("*-flips")) / "mirrored.npy")
    cache = build(tmp_path / "cache", images, weights, levels=("c5",), flip=False)
    assert cache.stores["c5"].mirrored is None
    assert [name for name in folders(tmp_path / "cache") if name.endswith("-flips")] == []


def build_and_tell(pipe, root, images, weights):
    """A builder in another process: tells how far it is, and goes on when it is told to."""
    torch.set_num_threads(1)
    pipe.send("started")

    def progress(message):
        pipe.send(message)
        pipe.recv()

    cache = build(root, images, weights, progress=progress)
    pipe.send(cache.maps(np.array([1, 34]), np.array([False, True]))["c5"].numpy())


class Builder:
    def __init__(self, *arguments):
        context = get_context("forkserver")
        context.set_forkserver_preload(["mgmrn.data.feature_cache"])
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=build_and_tell, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        assert self.told() == "started"

    def told(self, timeout=60):
        assert self.pipe.poll(timeout), "the builder says nothing"
        return self.pipe.recv()

    def finish(self):
        """What it reported on its way, and the maps that it read in the end."""
        messages = []
        while isinstance(message := self.told(), str):
            messages.append(message)
            self.pipe.send("go on")
        self.process.join(30)
        return messages, message

    def kill(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(30)


@pytest.fixture
def builder():
    started = []

    def start(*arguments):
        started.append(Builder(*arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.is_alive():
            one.kill()


def test_of_two_builders_one_works(tmp_path, images, weights, builder):
    root = tmp_path / "cache"
    first = builder(root, images, weights)
    assert "of 36" in first.told()
    second = builder(root, images, weights)
    assert not second.pipe.poll(0.5), "the second builder did not wait"
    first.pipe.send("go on")
    (_, from_first), (messages, from_second) = first.finish(), second.finish()
    assert messages == []
    assert np.array_equal(from_first, from_second)
    assert len(folders(root)) == len(LEVELS)


def test_of_two_that_find_it_damaged_one_makes_it_again(tmp_path, images, weights, builder):
    root = tmp_path / "cache"
    build(root, images, weights)
    cut(next(root.glob("*-c5-flips")) / "straight.npy")
    first = builder(root, images, weights)
    assert "are damaged" in first.told()
    second = builder(root, images, weights)
    first.pipe.send("go on")
    (_, from_first), (messages, from_second) = first.finish(), second.finish()
    assert messages == [] and np.array_equal(from_first, from_second)
    assert len(folders(root)) == len(LEVELS)


def test_what_a_killed_builder_leaves_is_no_cache(tmp_path, images, weights, builder):
    root = tmp_path / "cache"
    first = builder(root, images, weights)
    assert "32 of 36" in first.told()
    second = builder(root, images, weights)
    left = folders(root)
    first.kill()
    messages, maps = second.finish()
    assert messages, "the second builder took what was left for a cache"
    assert len(left) == len(LEVELS)
    assert not left & folders(root), "the killed builder's folders are still there"
    assert len(folders(root)) == len(LEVELS)
    expected = torch.cat(
        [direct(images, weights, [1])["c5"], direct(images, weights, [34], mirrored=True)["c5"]]
    ).numpy()
    np.testing.assert_allclose(maps / expected.max(), expected / expected.max(), rtol=0, atol=1e-3)
