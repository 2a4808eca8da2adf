"""An epoch of a `tune` run on cached maps against the same epoch from pictures.

Both run the same head on the same batches. A stretch of each is timed in turn, several times, and the whole epoch, which is a pass over the
training images and one over the evaluation images, follows from its rate.
"""

from __future__ import annotations

from itertools import islice

from mgmrn.sources import EVALUATION_BATCH
from pipeline.bench.report import Timing, rounds_ratio, seconds_of, spread
from pipeline.bench.stretch import Stretch

REPEATS = 5
TRAIN_BATCHES = 4
EVALUATION_BATCHES = 2
STEPS = TRAIN_BATCHES * (REPEATS + 1)
"""That each kind is trained."""


def epochs_in_turn(cached: Stretch, pictures: Stretch) -> list[Timing]:
    """The ratio, and the seconds of either.

    Args:
        cached: on cached maps.
        pictures: the same experiment from pictures.
    """
    kinds = {"pictures": pictures, "cached maps": cached}
    # The first round of each pays for allocations.
    rounds = [{name: _seconds(stretch) for name, stretch in kinds.items()} for _ in range(REPEATS + 1)][1:]
    seconds = {name: [one[name] for one in rounds] for name in kinds}
    return [
        rounds_ratio("pictures / cached maps, seconds an epoch", *seconds.values()),
        *(spread(f"epoch from {name}", found, "s") for name, found in seconds.items()),
    ]


def _seconds(stretch: Stretch) -> float:
    feed, data = stretch.feed, stretch.data
    training = seconds_of(lambda: stretch.train(TRAIN_BATCHES))
    some = islice(feed.evaluation_inputs(), EVALUATION_BATCHES)
    evaluation = seconds_of(lambda: stretch.scores(some))
    images = len(data.seen) + len(data.unseen)
    return training * feed.steps_per_epoch / TRAIN_BATCHES + evaluation * images / EVALUATION_BATCH / EVALUATION_BATCHES
