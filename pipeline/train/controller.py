"""Ray Train's controller in the process that wants the run, and what that changes for the ranks (docs/adr/0009).

Ray Train gives each run's controller a process of its own, which loads Ray Train once more while nothing else can go on, wakes a hundred
times a second while the ranks train, and must be ended apart when the driver is.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import ray
from ray.train import Result
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import Worker, WorkerGroup

from pipeline.train.alone import NoBarrier


class Ranks(WorkerGroup):
    """Ranks that no controller's actor handle is given to. One that is alone keeps no barrier waiting for others."""

    def _init_train_context_on_workers(
        self, workers: list[Worker], sync_actor: Any, train_context_args: dict[str, list[Any]]
    ) -> None:
        if len(workers) == 1:
            ray.kill(sync_actor)
            sync_actor = NoBarrier()
        told = [
            worker.actor.init_train_context.remote(
                train_run_context=self._train_run_context,
                distributed_context=worker.distributed_context,
                synchronization_actor=sync_actor,
                storage_context=self._storage_context,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,  # Asked for reported checkpoints alone, of which ours report none.
                **{name: values[place] for name, values in train_context_args.items()},
            )
            for place, worker in enumerate(workers)
        ]
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)


class Controller(TrainController):
    """One run from its first rank to its last."""

    worker_group_cls = Ranks

    def run_here(self) -> Result:
        """Runs to the end; whatever interrupts this thread ends the ranks first."""
        try:
            with asyncio.Runner() as runner:
                # Not by `Runner.run`, whose handler of Ctrl-C waits for the next await.
                runner.get_loop().run_until_complete(self.run())
        except BaseException:
            with suppress(Exception):  # What cannot be ended here ends with this process; why it ends is what counts.
                self._end_ranks()
            raise
        return self.get_result()

    def _end_ranks(self) -> None:
        self._controller_callback_manager.invoke_best_effort("before_controller_abort")
        if self._worker_group:
            self._worker_group.abort()
