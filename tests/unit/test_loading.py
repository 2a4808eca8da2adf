"""Batches of pictures: content, errors of broken pictures, and prefetching."""

import gc
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mgmrn.config import BenchmarkConfig, ImageConfig
from mgmrn.data.decoded import PictureFiles
from mgmrn.data.images import decode, for_evaluation, side_for_evaluation, side_for_training
from mgmrn.data.loading import evaluation_loader, prefetch, train_loader
from mgmrn.data.splits import load_final
from mgmrn.errors import UserError
from tests.tiny import write_benchmark

CONFIG = ImageConfig(size=32)
UNIT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return load_final(write_benchmark(tmp_path_factory.mktemp("data")), BenchmarkConfig(name="TINY")).train


def test_pictures_do_not_depend_on_workers_batches_or_order(images):
    config = ImageConfig(size=32, min_crop_area=0.5, **UNIT)

    def pictures(batches, epoch, workers):
        files = PictureFiles(images, side_for_training(config))
        loaded = torch.cat(list(train_loader(files, config, [(epoch, batches)], seed=3, workers=workers)))
        return dict(zip(np.concatenate(batches).tolist(), loaded, strict=True))

    plain = pictures([np.arange(8)], 0, 0)
    shuffled = pictures([np.array([7, 2, 5]), np.array([0, 1]), np.array([6, 4, 3])], 0, 2)
    assert all(torch.equal(plain[row], shuffled[row]) for row in range(8))
    later = pictures([np.arange(8)], 1, 0)
    assert not any(torch.equal(plain[row], later[row]) for row in range(8))


def test_evaluation_keeps_order_and_the_short_last_batch(images):
    batches = list(evaluation_loader(PictureFiles(images, side_for_evaluation(CONFIG)), CONFIG, 10, 0))
    assert [len(batch) for batch in batches] == [10, 10, 4]
    expected = for_evaluation(decode(images.path(23)), CONFIG)
    assert torch.equal(batches[2][3], expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_in_a_loader_is_named_without_a_traceback(tmp_path, workers):
    root = write_benchmark(tmp_path)
    images = load_final(root, BenchmarkConfig(name="TINY")).train
    images.path(3).write_bytes(images.path(3).read_bytes()[:100])
    with pytest.raises(UserError) as caught:
        list(evaluation_loader(PictureFiles(images, side_for_evaluation(CONFIG)), CONFIG, 8, workers))
    assert str(images.path(3)) in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_that_follow_each_other_are_those_that_stand_alone(images, workers):
    config = ImageConfig(size=32, min_crop_area=0.5, **UNIT)
    files = PictureFiles(images, side_for_training(config))
    epochs = [(epoch, [np.arange(4), np.arange(4, 8)]) for epoch in range(3)]
    together = list(train_loader(files, config, epochs, seed=3, workers=workers))
    alone = [batch for epoch in epochs for batch in train_loader(files, config, [epoch], seed=3, workers=0)]
    assert len(together) == 6 and all(map(torch.equal, together, alone))


def test_loading_draws_nothing_from_the_randomness_of_training(images):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    files = PictureFiles(images, side_for_training(CONFIG))
    list(train_loader(files, CONFIG, [(0, [np.arange(4)])], seed=3, workers=1))
    assert torch.equal(torch.rand(3), expected)


def test_items_come_in_order_one_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number

    ahead = prefetch(items())
    assert next(ahead) == 0
    assert list(ahead) == [1, 2, 3] and made == [0, 1, 2, 3]


def test_an_error_comes_where_the_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)


def test_its_own_thread_may_be_the_one_that_collects_it() -> None:
    """Garbage in a cycle is collected by whatever thread comes along."""
    collected = threading.Event()
    let_go = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        yield 2
        let_go.wait(10)
        gc.collect()
        collected.set()
        yield 3

    holder: list[object] = [prefetch(items())]
    holder.append(holder)
    assert next(holder[0]) == 1 and next(holder[0]) == 2  # type: ignore[call-overload]
    del holder
    let_go.set()
    # An exception that nobody can catch would fail the test: pytest looks for those.
    assert collected.wait(10)
