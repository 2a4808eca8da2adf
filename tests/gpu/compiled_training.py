"""`python -m tests.gpu.compiled_training CHANGES-AS-JSON [nccl]`: training plain and compiled, on the usual device.

With `nccl` the compiled one trains as a rank. A process of its own, since checked signatures break a compiled graph.
Prints one JSON object.
"""

import json
import sys

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from mgmrn.device import usual_device
from mgmrn.engine import train_epoch
from tests.gpu.small import batches, disagreement, experiment, new_trainer

EPOCHS = 3
"""Enough that on a GPU most steps are replays."""


def main(changes: str, backend: str = "") -> None:
    torch.backends.cudnn.allow_tf32 = False
    changed, device = json.loads(changes), usual_device()
    plain = new_trainer(experiment(**changed), device)
    compiled = new_trainer(experiment(**changed, compile=True), device)
    if backend:
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
        compiled.objective = DistributedDataParallel(
            compiled.objective, device_ids=[device], gradient_as_bucket_view=True, broadcast_buffers=False
        )
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
    if backend:
        torch.distributed.destroy_process_group()
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
