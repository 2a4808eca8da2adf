"""Runs whose number of ranks is given."""

from __future__ import annotations

from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy


class FixedSize(FixedScalingPolicy):
    """Ranks of a number that is given, without the actor that divides a cluster between Ray Train and Ray Data.

    The ranks' placement group is the demand that an autoscaler sees. An elastic run asks that actor what there is room for, and keeps it.
    """

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Asks nobody: the actor would be started by that."""

    def _maybe_send_resource_request(self) -> None:
        """Called at every poll."""
