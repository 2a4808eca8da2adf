"""What regularises a head on cached maps: variants of one experiment on its `tune` split, several seeds each.

A prototype, for docs/log.md: what it shows to help gets into the product, and the script goes. A line of JSON per run, with the figures of the
summed levels, of each level alone, of scores averaged with those of the mirror images, and of weights averaged over the steps.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks import measure
from mgmrn.engine import Batch, train_epoch
from mgmrn.model.network import class_scores
from mgmrn.protocol import evaluate_split
from mgmrn.sources import MapSource

Perturb = Callable[[Tensor], Tensor]

MAPS: dict[str, Perturb] = {
    "noise": lambda x: x * (1 + 0.5 * torch.randn_like(x)),
    "channels": lambda x: F.dropout2d(x, 0.2),
    "pixels": lambda x: x * (torch.rand(len(x), 1, *x.shape[2:]) > 0.3),
}
"""Perturbations of the maps in training."""
TOKENS = {"tokens": 0.5}
"""Share of the decoders' tokens that a batch drops in training."""
DECAY = 0.99
"""Of the averaged weights, per step."""


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
            arguments.set = [*sets, f"seed={seed}", *overrides.split()]
            found = run(measure.experiment_of(arguments), arguments, lever)
            sys.stdout.write(json.dumps({"variant": name, "seed": int(seed)} | found) + "\n")
            sys.stdout.flush()


def run(config, arguments, lever: str) -> dict[str, float]:
    """Trains one network and returns its figures."""
    start = time.perf_counter()
    training = measure.open_training(config, arguments.data_root)
    network, feed, trainer = training.trainer.network, training.feed, training.trainer
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    trainer.optimiser.register_step_post_hook(lambda *_: average.update_parameters(network))
    if lever in TOKENS:
        for decoder in network.decoders.values():
            decoder.register_forward_pre_hook(lambda module, args: (dropped(module, args[0], TOKENS[lever]), *args[1:]))
    for epoch in range(config.schedule.epochs):
        torch.manual_seed(1000 * config.seed + epoch)
        train_epoch(trainer, perturbed(feed.train_batches(epoch), MAPS.get(lever)))
    trained = time.perf_counter() - start
    straight, mirrored = (scores(training, network, view) for view in (False, True))
    found = figures(training, sum(straight.values()), "")
    found |= figures(training, sum(straight.values()) + sum(mirrored.values()), "mirror_")
    found |= figures(training, sum(scores(training, average.module, False).values()), "ema_")
    for level, rows in straight.items():
        found |= figures(training, rows, f"{level}_")
    return found | {"train_s": trained, "all_s": time.perf_counter() - start}


def dropped(module: nn.Module, tokens: Tensor, share: float) -> Tensor:
    """A random part of the tokens, the same for all images of the batch."""
    return tokens[:, torch.rand(tokens.shape[1]) > share] if module.training else tokens


def perturbed(batches: Iterable[Batch], change: Perturb | None) -> Iterator[Batch]:
    """Batches with perturbed maps."""
    for batch in batches:
        if change is not None:
            batch = replace(batch, inputs={level: change(x.float()) for level, x in batch.inputs.items()})
        yield batch


@torch.inference_mode()
def scores(training: measure.Training, network: nn.Module, mirrored: bool) -> dict[str, np.ndarray]:
    """Scores of the evaluation images, by level."""
    source, data = training.feed._source, training.data  # noqa: SLF001
    assert isinstance(source, MapSource)
    network.eval()
    attributes = torch.from_numpy(data.classes.attributes)
    count = len(data.seen) + len(data.unseen)
    rows: dict[str, list[np.ndarray]] = {}
    for start in range(0, count, 64):
        part = source.held_out.take(np.arange(start, min(start + 64, count)))
        maps = {level: x.float() for level, x in part.maps(np.full(len(part.rows), mirrored)).items()}
        for level, vectors in network(maps).attributes.items():
            rows.setdefault(level, []).append(
                class_scores({level: vectors}, attributes, source.config.loss.scale).numpy()
            )
    return {level: np.concatenate(parts) for level, parts in rows.items()}


def figures(training: measure.Training, rows: np.ndarray, prefix: str) -> dict[str, float]:
    """AUSUC, H* and T1 of scores."""
    result = evaluate_split(training.data, rows, None).result
    return {f"{prefix}ausuc": result.ausuc, f"{prefix}h": result.h, f"{prefix}t1": result.t1}


if __name__ == "__main__":
    measure.run_script(main)
