"""Head training on cached maps: images per second of ours against the same head written out plainly (tests/reference/plain_head.py).

Both start from the same weights and train on the same batches in memory, so that arithmetic is compared and not reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks import measure
from mgmrn.config import ExperimentConfig, MgMRNConfig
from mgmrn.engine import Batch, train_epoch
from mgmrn.errors import UserError
from tests.reference.plain_head import PlainHead, head_loss

BATCHES = 4
"""Batches of a round."""


def main() -> None:
    """Times both in alternating rounds."""
    arguments = measure.experiment_parser(__doc__, rounds=5).parse_args()
    config = measure.experiment_of(arguments)
    model = plain_model(config)
    training = measure.open_training(config, arguments.data_root, steps=BATCHES * (arguments.rounds + 1))
    batches = [batch.to(training.device) for batch in training.batches(BATCHES)]
    classes = training.data.classes
    seen = torch.from_numpy(classes.attributes[classes.seen_ids]).to(training.device)

    head = PlainHead(training.feed.network.state_dict(), model).to(training.device)
    optimiser = torch.optim.AdamW(
        head.parameters(), lr=config.optimiser.head_lr, weight_decay=config.optimiser.weight_decay
    )

    def train_plainly(batches: Sequence[Batch]) -> None:
        for batch in batches:
            optimiser.zero_grad()
            vectors = head(batch.inputs)
            loss = head_loss(vectors, batch.targets, seen, scale=config.loss.scale, regression=config.loss.regression)
            loss.backward()
            optimiser.step()
            loss.item()  # Waits for a GPU, as `train_epoch` does at its end.

    works: dict[str, Callable[[], object]] = {
        "ours": lambda: train_epoch(training.trainer, batches),
        "plain": lambda: train_plainly(batches),
    }
    for work in works.values():
        work()
    seconds = measure.alternate_seconds(works, arguments.rounds)
    images = sum(len(batch.ids) for batch in batches)
    faster = measure.ratio("ours / plain, images/s", seconds["plain"], seconds["ours"])
    rates = [measure.spread(f"{name}: images", [images / s for s in found], "1/s") for name, found in seconds.items()]
    measure.show(
        "head",
        [faster, *rates],
        "torch",
        maps=f"{config.benchmark.name}, batches of {training.feed.global_batch}",
        device=training.device.type,
        threads=torch.get_num_threads(),
    )


def plain_model(config: ExperimentConfig) -> MgMRNConfig:
    """The network's config. Raises UserError for a network, optimiser or source of maps that the plain head has not."""
    model = config.model
    if isinstance(model, MgMRNConfig) and config.cache_features and config.optimiser.name == "adamw":
        return model
    raise UserError(
        "the plain head is written for cached features, Mg-MRN and AdamW only",
        "EXPERIMENT",
        "use cub100 or synthetic",
    )


if __name__ == "__main__":
    measure.run_script(main)
