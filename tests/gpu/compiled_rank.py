"""`python -m tests.gpu.compiled_rank`: the same training plain, and compiled as a rank of NCCL. Prints how far the networks are apart."""

from __future__ import annotations

import sys

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from mgmrn.engine import train_epoch
from tests.gpu.small import batches, disagreement, experiment, new_trainer


def main() -> None:
    torch.backends.cudnn.allow_tf32 = False
    gpu = torch.device("cuda", 0)
    torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=1)
    plain, compiled = new_trainer(experiment(), gpu), new_trainer(experiment(compile="auto"), gpu)
    compiled.objective = DistributedDataParallel(
        compiled.objective, device_ids=[gpu], gradient_as_bucket_view=True, broadcast_buffers=False
    )
    for epoch in range(3):
        for trainer in (plain, compiled):
            train_epoch(trainer, batches(epoch))
    torch.distributed.destroy_process_group()
    sys.stdout.write(f"{disagreement(plain, compiled)}\n")


if __name__ == "__main__":
    main()
