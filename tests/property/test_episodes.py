"""Global batches do not depend on the number of ranks, which share them out completely."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgmrn.data.episodes import EpisodicBatches, PlainBatches, eval_shard, shard
from mgmrn.errors import UserError

worlds, seeds, epochs = st.integers(1, 8), st.integers(0, 5), st.integers(0, 5)


def assert_shares_are_a_partition(batches, epoch, world):
    shares = [list(shard(batches, epoch, rank, world)) for rank in range(world)]
    for step, whole in enumerate(batches.epoch(epoch)):
        parts = [share[step] for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        sizes = [len(part) for part in parts]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


@given(st.integers(8, 60), st.integers(8, 16), worlds, seeds, epochs)
def test_plain_shares_are_a_partition(count, batch, world, seed, epoch):
    if count < batch:
        return
    batches = PlainBatches(count, batch, seed)
    assert_shares_are_a_partition(batches, epoch, world)
    used = np.concatenate(list(batches.epoch(epoch)))
    assert len(np.unique(used)) == len(used) == len(batches) * batch > count - batch


@settings(max_examples=25)
@given(st.integers(2, 5), st.integers(1, 3), worlds, seeds, epochs)
def test_episodes_are_distinct_images_of_distinct_classes(ways, shots, world, seed, epoch):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), 3))
    batches = EpisodicBatches(labels, ways, shots, episodes=4, seed=seed)
    if world <= ways * shots:
        assert_shares_are_a_partition(batches, epoch, world)
    for rows in batches.epoch(epoch):
        assert len(np.unique(rows)) == ways * shots == batches.global_batch
        classes, counts = np.unique(labels[rows], return_counts=True)
        assert len(classes) == ways and set(counts) == {shots}


def test_epochs_and_seeds_differ():
    def first(seed, epoch):
        return next(iter(PlainBatches(100, 50, seed).epoch(epoch))).tolist()

    assert len({tuple(first(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_classes_with_too_few_images_are_never_drawn_and_impossible_batches_are_refused():
    labels = np.array([0, 0, 0, 1, 2, 2, 2])
    assert 1 not in labels[np.concatenate(list(EpisodicBatches(labels, 2, 2, 20, 0).epoch(0)))]
    with pytest.raises(UserError, match="2 classes have 2 images"):
        EpisodicBatches(np.array([0, 0, 1, 2, 2]), 3, 2, 5, 0)
    with pytest.raises(UserError, match="there are 5 to train on"):
        PlainBatches(5, 6, 0)
    with pytest.raises(UserError, match="9 workers cannot share"):
        list(shard(PlainBatches(20, 8, 0), 0, 0, 9))


@given(st.integers(0, 50), worlds)
def test_evaluation_shares_are_all_images_once_in_order(count, world):
    shares = [eval_shard(count, rank, world) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(shares), np.arange(count))
