"""Ray Train's trainer without two of its helper processes, for which this project has no use."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""The first deals out Ray Data's datasets: ours are read by the ranks. The second gives back the CPUs of a controller that died:
`pipeline.train.leftover` does, also where no dashboard answers (docs/adr/0009)."""


class LeanTrainer(TorchTrainer):
    """A `TorchTrainer` for `pipeline.train.worker`: each run starts two processes less, a fifth of what its start costs."""

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, UNUSED)]
