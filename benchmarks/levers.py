"""What regularises a head on cached maps: variants of one experiment on its `tune` split, several seeds each.

A prototype, for docs/log.md: what it shows to help gets into the product, and the script goes. A line of JSON per run, with the figures after
the last epoch: of the summed levels, of each level alone, of scores averaged with those of the mirror images, and of averaged weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import measure
from mgmrn import losses
from mgmrn.config import AgreementTeacher, ExperimentConfig, Level
from mgmrn.engine import Batch, evaluate, train_epoch
from mgmrn.protocol import evaluate_split

MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": lambda x: x * (1 + 0.5 * torch.randn_like(x)),
    "channels": lambda x: F.dropout2d(x, 0.2),
    "pixels": lambda x: x * (torch.rand(len(x), 1, *x.shape[2:]) > 0.3),
}
"""Perturbations of the maps in training."""
DROPPED = {"tokens": 0.5, "few_tokens": 0.2}
"""Share of the decoders' tokens that a batch drops in training."""
TEMPERATURES = {"soft": 2.0, "sharp": 0.5}
"""By which the scores are divided in the agreement, whose gradient is kept at its size by T²."""
DECAY = 0.99
"""Of the exponentially averaged weights, per step."""
agreement = losses.agreement


def main() -> None:
    """Trains every variant with every seed, seed by seed."""
    parser = measure.experiment_parser(__doc__, rounds=1)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--variant", action="append", metavar="NAME[:LEVER][:PATH=VALUE …]", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = list(arguments.set)
    for seed in arguments.seeds.split(","):
        for variant in arguments.variant:
            name, _, rest = variant.partition(":")
            lever, _, overrides = rest.partition(":")
            arguments.set = [*sets, f"seed={seed}", "mirror_scores=true", *overrides.split()]
            found = run(measure.experiment_of(arguments), arguments, lever)
            sys.stdout.write(json.dumps({"variant": name, "seed": int(seed)} | found) + "\n")
            sys.stdout.flush()


def run(config: ExperimentConfig, arguments: argparse.Namespace, lever: str) -> dict[str, float]:
    """Trains one network and returns its figures."""
    start = time.perf_counter()
    losses.agreement = partial(at_temperature, TEMPERATURES[lever]) if lever in TEMPERATURES else agreement
    training = measure.open_training(config, arguments.data_root)
    network, feed, trainer = training.trainer.network, training.feed, training.trainer
    exponential = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))  # type: ignore[no-untyped-call]
    late = AveragedModel(network)
    trainer.optimiser.register_step_post_hook(lambda *_: exponential.update_parameters(network))
    if lever in DROPPED:
        assert isinstance(network.decoders, nn.ModuleDict)
        for decoder in network.decoders.values():
            decoder.register_forward_pre_hook(
                lambda module, args: (dropped(module, args[0], DROPPED[lever]), *args[1:])
            )
    for epoch in range(config.schedule.epochs):
        torch.manual_seed(1000 * config.seed + epoch)
        train_epoch(trainer, perturbed(feed.train_batches(epoch), MAPS.get(lever)))
        if epoch >= config.schedule.epochs - 3:
            late.update_parameters(network)
    trained = time.perf_counter() - start
    straight, mirrored = (scores(training, network, view) for view in (False, True))
    found = figures(training, straight[None], "")
    found |= figures(training, straight[None] + mirrored[None], "mirror_")
    found |= figures(training, scores(training, exponential.module, False)[None], "ema_")
    found |= figures(training, scores(training, late.module, False)[None], "late_")
    for level, rows in straight.items():
        if level is not None:
            found |= figures(training, rows, f"{level}_")
    return found | {"train_s": trained, "all_s": time.perf_counter() - start}


def at_temperature(
    temperature: float, scores: Mapping[Level, Tensor], targets: Tensor, teacher: AgreementTeacher
) -> dict[Level, Tensor]:
    """The agreement of softer or sharper predictions."""
    softened = {level: s / temperature for level, s in scores.items()}
    return {level: temperature**2 * rows for level, rows in agreement(softened, targets, teacher).items()}


def dropped(module: nn.Module, tokens: Tensor, share: float) -> Tensor:
    """A random part of the tokens, the same for all images of the batch."""
    return tokens[:, torch.rand(tokens.shape[1]) > share] if module.training else tokens


def perturbed(batches: Iterable[Batch], change: Callable[[Tensor], Tensor] | None) -> Iterator[Batch]:
    """Batches with perturbed maps."""
    for batch in batches:
        if change is not None:
            assert isinstance(batch.inputs, dict)
            batch = replace(batch, inputs={level: change(x.float()) for level, x in batch.inputs.items()})
        yield batch


def scores(training: measure.Training, network: nn.Module, mirrored: bool) -> dict[Level | None, np.ndarray]:
    """Scores of the evaluation images, summed under None and by level."""
    attributes = torch.from_numpy(training.data.classes.attributes)
    inputs = training.feed.evaluation_inputs(mirrored)
    return evaluate(network, inputs, attributes, training.trainer.config, training.device)


def figures(training: measure.Training, rows: np.ndarray, prefix: str) -> dict[str, float]:
    """AUSUC, H* and T1 of scores."""
    result = evaluate_split(training.data, rows, None).result
    return {f"{prefix}ausuc": result.ausuc, f"{prefix}h": result.gzsl_h, f"{prefix}t1": result.zsl_t1}


if __name__ == "__main__":
    measure.run_script(main)
