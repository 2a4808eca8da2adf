"""Ray Train's trainer without torch, and without those of its helper processes for which this project has no use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.train import LoggingConfig, Result, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.train.cluster import Placement
from pipeline.train.controller import Controller
from pipeline.train.fixed_size import FixedSize
from pipeline.train.process_group import ProcessGroup

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""The first deals out Ray Data's datasets: ours are read by the ranks. The second gives back the CPUs of a controller that died:
`pipeline.train.leftover` does, also where no dashboard answers (docs/adr/0009)."""

QUIET = LoggingConfig(log_level="CRITICAL")
"""Ray Train writes into its own files, `logs/train/ray-train-sys-*.log` of Ray's session, and not between the driver's lines."""

GROWTH_SECONDS = 10.0
"""How often an elastic run looks for room to grow."""


class LeanTrainer(DataParallelTrainer):
    """Ray Train for `pipeline.train.worker`: few processes start for a run besides its ranks, and fewer stay (docs/adr/0009)."""

    @classmethod
    def on(
        cls,
        placement: Placement,
        loop: Callable[[dict[str, str]], None],
        spec_json: str,
        run_config: RunConfig,
    ) -> LeanTrainer:
        """One that runs a function on the ranks of a placement.

        Args:
            placement: ranks and what each of them gets.
            loop: what each rank does; gets `{"spec": spec_json}`.
            spec_json: what the ranks are told.
            run_config: name, storage, callbacks.
        """
        return cls(
            loop,
            train_loop_config={"spec": spec_json},
            backend_config=ProcessGroup.between(placement.gpus_per_worker),
            scaling_config=ScalingConfig(
                num_workers=placement.number,
                elastic_resize_monitor_interval_s=GROWTH_SECONDS,
                use_gpu=placement.gpus_per_worker > 0,
                resources_per_worker=placement.resources_per_worker,
            ),
            run_config=run_config,
        )

    def _create_default_callbacks(self) -> list[Any]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, UNUSED)]

    def _initialize_and_run_controller(self, **parts: Any) -> Result:
        if not self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = FixedSize(self.scaling_config)
        return Controller(**parts).run_here()
