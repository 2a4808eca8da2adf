"""Ray Train's trainer without torch, without three of its helper processes, for which this project has no use, and with Python's own Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.train.cluster import Placement
from pipeline.train.fixed_size import FixedSize
from pipeline.train.process_group import ProcessGroup

UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)
"""The first deals out Ray Data's datasets: ours are read by the ranks. The second gives back the CPUs of a controller that died:
`pipeline.train.leftover` does, also where no dashboard answers (docs/adr/0009)."""

ABORT_SECONDS = 10.0
GROWTH_SECONDS = 10.0
"""How often an elastic run looks for room to grow."""


class LeanTrainer(DataParallelTrainer):
    """Ray Train for `pipeline.train.worker`: each run starts fewer processes, and fewer of them wake while it trains (docs/adr/0009)."""

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

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if not self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = FixedSize(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)

    def _register_sigint_handler(self, controller: Any) -> None:
        """Ends the workers, then interrupts the driver. Ray's own handler ends the driver with exit code 0 and an open run."""

        def interrupt(signum: int, frame: FrameType | None) -> None:
            # Who presses Ctrl-C again does not wait for the workers.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with suppress(RayError):
                ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)
