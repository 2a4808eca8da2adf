"""`bench head`: the head's training on cached maps, ours against the same head written out plainly (`tests/reference/plain_head.py`).

Both start from the same weights and train on the same batches, which are in memory: what is compared is the arithmetic, not the reading.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from mgmrn.config import LEVELS, ExperimentConfig, MgMRNConfig
from mgmrn.engine import Batch, train_epoch
from mgmrn.errors import UserError
from pipeline.bench.machine import synchronise
from pipeline.bench.reference import reference_module
from pipeline.bench.report import BenchReport, environment, in_turn, rounds_ratio, spread
from pipeline.bench.stretch import open_stretch

REPEATS = 5
BATCHES = 4


def run(config: ExperimentConfig, data_root: Path, cache_root: Path, repeats: int = REPEATS) -> BenchReport:
    """Times both.

    Args:
        config: an experiment with cached features whose head mines `regions`, halves after its convolutions and refines nothing, as
            `cub100` does.
        data_root: folder of the benchmarks.
        cache_root: folder of cached features; filled where they are missing, which is not timed.
        repeats: rounds of `BATCHES` batches each.

    Raises:
        UserError: for another config, a broken data set, or a reference that is not at hand.
    """
    model = _checked(config)
    torch.manual_seed(config.seed)
    stretch = open_stretch(config, data_root, cache_root, steps=BATCHES * (repeats + 1))
    batches = [batch.to(stretch.device) for batch in stretch.batches(BATCHES)]
    seen = stretch.data.classes.attributes[stretch.data.classes.seen_ids]
    classes = torch.from_numpy(seen).to(stretch.device)
    plain = _PlainTraining(stretch.feed.network, model, config, classes, stretch.device)
    works = {"ours": lambda: train_epoch(stretch.trainer, batches), "plain": lambda: plain.epoch(batches)}
    in_turn(works, 1)
    seconds = in_turn(works, repeats)
    images = sum(len(batch.ids) for batch in batches)
    ratio = rounds_ratio("ours / plain, images/s", seconds["plain"], seconds["ours"])
    rates = [spread(f"{name}: images", [images / s for s in found], "1/s") for name, found in seconds.items()]
    notes = (
        f"Batches of {stretch.feed.global_batch} maps of {config.benchmark.name}, {torch.get_num_threads()} CPU threads.",
    )
    return BenchReport("head", environment(("torch",)), (ratio, *rates), {ratio.name: ratio.median}, notes)


class _PlainTraining:
    """The plain head in training."""

    def __init__(
        self,
        network: nn.Module,
        model: MgMRNConfig,
        config: ExperimentConfig,
        classes: torch.Tensor,
        device: torch.device,
    ) -> None:
        self._code = reference_module("plain_head")
        coarsest = LEVELS.index(model.levels[-1])
        reductions = {level: coarsest - LEVELS.index(level) for level in model.levels}
        groups = model.granularity.group_norm_groups
        self._network = self._code.PlainHead(network.state_dict(), model.levels, reductions, groups).to(device)
        optimiser = config.optimiser
        self._optimiser = torch.optim.AdamW(
            self._network.parameters(), lr=optimiser.head_lr, weight_decay=optimiser.weight_decay
        )
        self._loss, self._classes, self._device = config.loss, classes, device

    def epoch(self, batches: list[Batch]) -> None:
        for batch in batches:
            self._optimiser.zero_grad()
            vectors = self._network(batch.inputs)
            loss = self._code.head_loss(
                vectors, batch.targets, self._classes, scale=self._loss.scale, regression=self._loss.regression
            )
            loss.backward()
            self._optimiser.step()
            loss.item()
        synchronise(self._device)


def _checked(config: ExperimentConfig) -> MgMRNConfig:
    model = config.model
    plain = (
        config.cache_features
        and isinstance(model, MgMRNConfig)
        and (model.regions.mode, model.granularity.reduce, model.granularity.stem, model.refinement.topology)
        == ("regions", "after", "project", "none")
        and model.decoder.temperature == "none"
        and config.optimiser.name == "adamw"
    )
    if not plain or not isinstance(model, MgMRNConfig):
        raise UserError(
            "the plain head is written for one kind of network only: cached features, regions, reduce after, no refinement",
            "EXPERIMENT",
            "use cub100 or synthetic",
        )
    return model
