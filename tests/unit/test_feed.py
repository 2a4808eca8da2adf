"""Batches of a rank and of a loader: the same from files and maps, and shares that make up the whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgmrn.config import ExperimentConfig, ImageConfig
from mgmrn.data import resident_maps
from mgmrn.data.images import for_evaluation
from mgmrn.data.loading import evaluation_loader, prefetch, train_loader
from mgmrn.data.pictures import read_picture
from mgmrn.data.splits import FinalData, Images, TuneData, load_final, load_tune
from mgmrn.errors import UserError
from mgmrn.feed import Feed, Share
from tests.tiny import write_benchmark

CROPS = ImageConfig(size=32, min_crop_area=0.5)


def config(cached: bool, **changed: Any) -> ExperimentConfig:
    backbone = {"name": "resnet18", "weights": "none", "trainable": "none" if cached else "all"}
    fields = {
        "seed": 3,
        "benchmark": {"name": "TINY", "images": {"size": 32, "min_crop_area": 1.0}},
        "model": {"kind": "mgmrn", "backbone": backbone, "levels": ["c4", "c5"], "width": 32},
        "sampling": {"kind": "plain", "batch": 5},
        "cache_features": cached,
    }
    return ExperimentConfig.model_validate(fields | changed)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("data"), size=80)


@pytest.fixture(scope="module")
def data(root: Path) -> TuneData:
    return load_tune(root, config(True).benchmark)


@pytest.fixture(scope="module")
def images(root: Path) -> Images:
    return load_final(root, config(True).benchmark).train


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def opened(data: TuneData | FinalData, cache: Path, settings: ExperimentConfig, share: Share = Share()) -> Feed:
    return Feed(settings, data, cache, share, torch.device("cpu"))


def tensor(inputs: Any) -> torch.Tensor:
    return inputs["c5"] if isinstance(inputs, dict) else inputs


def test_maps_and_pictures_come_in_the_same_batches(data: TuneData, cache: Path) -> None:
    maps, pictures = (opened(data, cache, config(cached)) for cached in (True, False))
    assert maps.network is maps.image_model.head and pictures.network is pictures.image_model
    assert maps.global_batch == pictures.global_batch == 5
    assert maps.steps_per_epoch == pictures.steps_per_epoch == len(data.train) // 5
    labels = dict(zip(data.train.ids.tolist(), data.train.labels.tolist(), strict=True))
    for of_maps, of_pictures in zip(maps.train_batches(1), pictures.train_batches(1), strict=True):
        assert set(of_maps.inputs) == {"c4", "c5"} and len(of_maps.inputs["c4"]) == 5
        assert of_pictures.inputs.shape == (5, 3, 32, 32)
        np.testing.assert_array_equal(of_maps.ids, of_pictures.ids)
        assert torch.equal(of_maps.targets, of_pictures.targets)
        targets = data.classes.seen_ids[of_maps.targets.numpy()].tolist()
        assert targets == [labels[image] for image in of_maps.ids.tolist()]


@pytest.mark.parametrize("cached", [True, False])
def test_shares_make_up_the_batch_and_the_evaluation(data: TuneData, cache: Path, cached: bool) -> None:
    whole = opened(data, cache, config(cached))
    parts = [opened(data, cache, config(cached), Share(rank, 2)) for rank in range(2)]
    for batch, *shares in zip(whole.train_batches(0), *(part.train_batches(0) for part in parts), strict=True):
        assert torch.equal(batch.targets, torch.cat([share.targets for share in shares]))
        assert torch.equal(tensor(batch.inputs), torch.cat([tensor(share.inputs) for share in shares]))
    evaluated = torch.cat([tensor(inputs) for inputs in whole.evaluation_inputs()])
    assert len(evaluated) == len(data.seen) + len(data.unseen)
    assert torch.equal(evaluated, torch.cat([tensor(i) for part in parts for i in part.evaluation_inputs()]))


def test_mirror_images_are_evaluated_from_maps_as_from_pictures(data: TuneData, cache: Path) -> None:
    maps, pictures = (opened(data, cache, config(cached, mirror_scores=True)) for cached in (True, False))
    straight, mirrored = (torch.cat([*pictures.evaluation_inputs(view)]) for view in (False, True))
    assert torch.equal(mirrored, straight.flip(3))
    found = torch.cat([tensor(inputs) for inputs in maps.evaluation_inputs(mirrored=True)])
    with torch.inference_mode():
        wanted = maps.image_model.backbone.eval()(mirrored)["c5"]
    torch.testing.assert_close(found.float(), wanted, rtol=1e-2, atol=1e-2)


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], torch.Tensor]:
    """The maps that a process holds on its device, which is a CPU with a GPU's way of indexing and 64 MiB."""
    monkeypatch.setattr(resident_maps, "free_bytes", lambda device: 2**26)
    monkeypatch.setattr(resident_maps, "_loaded", {})
    monkeypatch.setattr(resident_maps, "_kept_off", False)
    return resident_maps._loaded


@pytest.mark.parametrize(("flip", "mirror_scores"), [(True, False), (False, True), (False, False)])
def test_maps_on_the_device_are_those_of_the_files_to_the_last_bit(
    data: TuneData, cache: Path, flip: bool, mirror_scores: bool, request: pytest.FixtureRequest
) -> None:
    images = {"name": "TINY", "images": {"size": 32, "flip": flip}}
    settings = config(True, benchmark=images, mirror_scores=mirror_scores)
    shares = (Share(), Share(1, 2))
    from_files = [opened(data, cache, settings, share) for share in shares]
    loaded = request.getfixturevalue("roomy")
    for on_host, share in zip(from_files, shares, strict=True):
        resident = opened(data, cache, settings, share)
        assert on_host.told == "" and resident.told == ("" if share.rank else "0.0 GiB of maps are on the GPU")
        assert len(loaded) == 2, "one tensor a level"
        for epoch in (0, 1, 0):
            both = zip(on_host.train_batches(epoch), resident.train_batches(epoch), strict=True)
            for wanted, found in both:
                np.testing.assert_array_equal(found.ids, wanted.ids)
                pairs = zip(found.tensors, wanted.tensors, strict=True)
                assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in pairs)
        for view in (False, True)[: 1 + mirror_scores]:
            for found, wanted in zip(resident.evaluation_inputs(view), on_host.evaluation_inputs(view), strict=True):
                assert found.keys() == wanted.keys() and all(
                    torch.equal(found[level], wanted[level]) for level in found
                )


def test_maps_are_loaded_once_and_dropped_when_another_run_needs_others(
    data: TuneData, root: Path, cache: Path, roomy: dict[tuple[str, ...], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(True)
    assert opened(data, cache, settings).told
    first = dict(roomy)
    assert opened(data, cache, settings).told == "", "nothing was loaded"
    final = load_final(root, settings.benchmark)
    assert opened(final, cache, settings).told and len(roomy) == 4, "and the test images"
    assert all(roomy[key] is maps for key, maps in first.items())
    opened(data, cache, settings)
    assert roomy.keys() == first.keys(), "a run on `tune` holds no test images"
    monkeypatch.setattr(resident_maps, "free_bytes", lambda device: 1)
    assert opened(data, cache, settings).told == "" and roomy.keys() == first.keys(), "they need no more memory"
    assert resident_maps.drop_maps() and not roomy
    assert not resident_maps.drop_maps(), "there were none left"
    monkeypatch.setattr(resident_maps, "free_bytes", lambda device: 2**26)
    assert opened(data, cache, settings).told == "" and not roomy, "the process ran out of memory before"


@pytest.mark.parametrize(
    ("needed", "free", "fitting"), [(0, 0, True), (1, 1, False), (5, 10, True), (6, 10, False), (2**33, 2**34, True)]
)
def test_maps_may_take_half_of_the_free_memory(needed: int, free: int, fitting: bool) -> None:
    assert resident_maps.fits(needed, free) == fitting


def test_an_impossible_batch_is_an_error_before_features_are_cached(data: TuneData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a batch of 50 images was asked for"):
        opened(data, tmp_path / "cache", config(True, sampling={"kind": "plain", "batch": 50}))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cached", [True, False])
def test_epochs_may_come_in_any_order(data: TuneData, cache: Path, cached: bool) -> None:
    def inputs(feed: Feed, epoch: int) -> torch.Tensor:
        return torch.cat([tensor(batch.inputs) for batch in feed.train_batches(epoch)])

    expected = [inputs(opened(data, cache, config(cached)), epoch) for epoch in range(3)]
    feed = opened(data, cache, config(cached))
    next(feed.train_batches(0))  # An epoch is left in its middle.
    for epoch in (0, 1, 0, 2, 1, 2):
        assert torch.equal(inputs(feed, epoch), expected[epoch])


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_do_not_depend_on_workers_batches_order_or_earlier_epochs(images: Images, workers: int) -> None:
    def pictures(*epochs: Any, workers: int = 0) -> torch.Tensor:
        return torch.cat(list(train_loader(images, CROPS, epochs, seed=3, workers=workers)))

    alone = [pictures((epoch, [np.arange(8)])) for epoch in range(2)]
    shuffled = [np.array([7, 2, 5]), np.array([0, 1]), np.array([6, 4, 3])]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    together = pictures((0, shuffled), (1, [np.arange(4), np.arange(4, 8)]), workers=workers)
    assert torch.equal(torch.rand(3), expected), "loading draws nothing from the randomness of training"
    assert torch.equal(together, torch.cat([alone[0][np.concatenate(shuffled)], alone[1]]))
    assert not any(torch.equal(one, other) for one, other in zip(*alone, strict=True)), "epochs differ"


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_keeps_the_order_and_names_a_broken_picture(tmp_path: Path, workers: int) -> None:
    settings = config(True)
    images = load_final(write_benchmark(tmp_path), settings.benchmark).train
    batches = list(evaluation_loader(images, settings.benchmark.images, 10, workers))
    assert [len(batch) for batch in batches] == [10, 10, 4]
    assert torch.equal(batches[2][3], for_evaluation(read_picture(images.path(23)), settings.benchmark.images))
    images.path(3).write_bytes(images.path(3).read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        list(evaluation_loader(images, settings.benchmark.images, 8, workers))
    assert str(images.path(3)) in str(caught.value) and "Traceback" not in str(caught.value)


def test_prefetched_items_keep_their_order_and_an_error_takes_the_place_of_its_item() -> None:
    def items() -> Iterator[int]:
        yield from range(4)
        raise ValueError("broken")

    ahead = prefetch(items())
    assert [next(ahead) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
