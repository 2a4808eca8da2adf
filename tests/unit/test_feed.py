"""A rank's batches: the same images and targets whether they come from pictures or from maps, and shares that make up the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgmrn.config import ExperimentConfig
from mgmrn.data import loading
from mgmrn.data.splits import TuneData, load_tune
from mgmrn.errors import UserError
from mgmrn.feed import Feed, Share, open_feed
from tests.tiny import write_benchmark

CPU = torch.device("cpu")


def config(cached: bool, **changed: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "seed": 3,
            "benchmark": {"name": "TINY", "images": {"size": 32, "resize": "squash"}},
            "model": {
                "kind": "mgmrn",
                "backbone": {"name": "resnet18", "weights": "none", "trainable": "none" if cached else "all"},
                "levels": ["c4", "c5"],
                "width": 32,
            },
            "sampling": {"kind": "plain", "batch": 5},
            "cache_features": cached,
            **changed,
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TuneData:
    return load_tune(write_benchmark(tmp_path_factory.mktemp("data")), config(True).benchmark)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def opened(data: TuneData, cache: Path, cached: bool, share: Share = Share()) -> Feed:
    return open_feed(config(cached), data, cache, share, CPU)


def test_maps_and_pictures_come_in_the_same_batches(data: TuneData, cache: Path) -> None:
    maps, pictures = opened(data, cache, True), opened(data, cache, False)
    assert maps.global_batch == pictures.global_batch == 5
    assert maps.steps_per_epoch == pictures.steps_per_epoch == len(data.train) // 5
    for of_maps, of_pictures in zip(maps.train_batches(1), pictures.train_batches(1), strict=True):
        assert set(of_maps.inputs) == {"c4", "c5"} and len(of_maps.inputs["c4"]) == 5
        assert of_pictures.inputs.shape == (5, 3, 32, 32)
        np.testing.assert_array_equal(of_maps.ids, of_pictures.ids)
        assert torch.equal(of_maps.targets, of_pictures.targets)
        labels = dict(zip(data.train.ids.tolist(), data.train.labels.tolist(), strict=True))
        targets = data.classes.seen_ids[of_maps.targets.numpy()].tolist()
        assert targets == [labels[image] for image in of_maps.ids.tolist()]


@pytest.mark.parametrize("cached", [True, False])
def test_shares_make_up_the_batch_and_the_evaluation(data: TuneData, cache: Path, cached: bool) -> None:
    def first(value: Any) -> torch.Tensor:
        return value["c5"] if cached else value

    whole = opened(data, cache, cached)
    parts = [opened(data, cache, cached, Share(rank, 2)) for rank in range(2)]
    batches = zip(whole.train_batches(0), *(part.train_batches(0) for part in parts), strict=True)
    for batch, *shares in batches:
        assert torch.equal(batch.targets, torch.cat([share.targets for share in shares]))
        assert torch.equal(first(batch.inputs), torch.cat([first(share.inputs) for share in shares]))
    evaluated = torch.cat([first(inputs) for inputs in whole.evaluation_inputs()])
    assert len(evaluated) == len(data.seen) + len(data.unseen)
    assert torch.equal(evaluated, torch.cat([first(i) for part in parts for i in part.evaluation_inputs()]))


def test_what_is_trained_is_part_of_the_image_model(data: TuneData, cache: Path) -> None:
    maps, pictures = opened(data, cache, True), opened(data, cache, False)
    assert maps.network is maps.image_model.head
    assert pictures.network is pictures.image_model


def test_a_batch_that_cannot_be_had_is_said_before_features_are_cached(data: TuneData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a batch of 50 images was asked for"):
        open_feed(config(True, sampling={"kind": "plain", "batch": 50}), data, tmp_path / "cache", Share(), CPU)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("cached", [True, False])
def test_epochs_may_be_asked_for_in_any_order(data: TuneData, cache: Path, cached: bool) -> None:
    def inputs(feed: Feed, epoch: int) -> torch.Tensor:
        return torch.cat([batch.inputs["c5"] if cached else batch.inputs for batch in feed.train_batches(epoch)])

    expected = [inputs(opened(data, cache, cached), epoch) for epoch in range(3)]
    feed = opened(data, cache, cached)
    next(feed.train_batches(0))  # Somebody loses interest.
    for epoch in (0, 1, 0, 2, 1, 2):
        assert torch.equal(inputs(feed, epoch), expected[epoch])


def test_one_loader_serves_all_epochs_and_loads_none_after_the_last(
    data: TuneData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    given: list[Any] = []

    class Noted(loading.DataLoader):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            made.append(self)
            super().__init__(*arguments, **options)

        def __iter__(self) -> Any:
            for batch in super().__iter__():
                given.append(batch)
                yield batch

    monkeypatch.setattr(loading, "DataLoader", Noted)
    feed = open_feed(config(False, schedule={"epochs": 3}), data, cache, Share(), CPU)
    for epoch in range(3):
        list(feed.train_batches(epoch))
    assert len(made) == 1 and len(given) == 3 * feed.steps_per_epoch
