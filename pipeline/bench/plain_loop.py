"""Epochs of a `tune` run in a plain loop: no Ray, no checkpoints, no tracking. What `bench overhead` measures the pipeline against.

`python -m pipeline.bench.plain_loop SPEC-AS-JSON` prints the moment, in seconds since 1970, at which it begins and at which each epoch ends.
"""

from __future__ import annotations

import sys
import time

import torch

from mgmrn.engine import train_epoch
from mgmrn.protocol import evaluate_split
from pipeline.bench.spec import TrainingSpec
from pipeline.bench.stretch import open_stretch


def main(spec_json: str) -> None:
    """Trains and evaluates epoch after epoch."""
    spec = TrainingSpec.model_validate_json(spec_json)
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.config.seed)
    stretch = open_stretch(spec.config, spec.data_root, spec.cache_root, steps=0)
    _print_moment()
    for epoch in range(spec.config.schedule.epochs):
        train_epoch(stretch.trainer, stretch.feed.train_batches(epoch))
        evaluate_split(stretch.data, stretch.scores(stretch.feed.evaluation_inputs()), None)
        _print_moment()


def _print_moment() -> None:
    sys.stdout.write(f"{time.time()!r}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
