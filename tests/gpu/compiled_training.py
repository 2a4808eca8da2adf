"""`python -m tests.gpu.compiled_training CHANGES-AS-JSON`: the same training plain and compiled, on the device at hand.

A process of its own, since checked signatures break a compiled graph in pieces. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys

import torch

from mgmrn.device import usual_device
from mgmrn.engine import train_epoch
from tests.gpu.small import batches, disagreement, experiment, new_trainer

EPOCHS = 3
"""So many that on a GPU most steps are replays."""


def main(changes: str) -> None:
    torch.backends.cudnn.allow_tf32 = False
    changed, device = json.loads(changes), usual_device()
    plain = new_trainer(experiment(**changed), device)
    compiled = new_trainer(experiment(**changed, compile=True), device)
    losses = {
        name: [train_epoch(trainer, batches(epoch)).loss["total"] for epoch in range(EPOCHS)]
        for name, trainer in (("plain", plain), ("compiled", compiled))
    }
    counters = torch._dynamo.utils.counters
    told = {
        "losses": losses,
        "disagreement": disagreement(plain, compiled),
        "breaks": list(counters["graph_break"]),
        "graphs": counters["stats"]["unique_graphs"],
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
