"""Who decides of a run's size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ResizeDecision, ScalingPolicy

from pipeline.train import trainer
from pipeline.train.cluster import Placement
from pipeline.train.fixed_size import FixedSize
from pipeline.train.trainer import LeanTrainer


@pytest.mark.parametrize(
    ("placement", "policy"),
    [(Placement(2, 1, 0), FixedSize), (Placement(1, 1, 0, most_workers=3), ElasticScalingPolicy)],
    ids=["fixed", "elastic"],
)
def test_only_elastic_runs_ask_what_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, placement: Placement, policy: type[ScalingPolicy]
) -> None:
    """The actor that answers is one more process, and wakes a hundred times a second."""
    given: dict[str, Any] = {}

    class Controller:
        def __init__(self, **parts: Any) -> None:
            given.update(parts)

        def run_here(self) -> SimpleNamespace:
            return SimpleNamespace(error=None)

    monkeypatch.setattr(trainer, "Controller", Controller)
    LeanTrainer.on(placement, print, "{}", RunConfig(name="run", storage_path=str(tmp_path))).fit()
    assert type(given["scaling_policy"]) is policy


def test_a_run_of_fixed_size_asks_for_its_ranks_and_nobody_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda *_, **__: pytest.fail("an actor was asked"))
    policy = FixedSize(ScalingConfig(num_workers=3, resources_per_worker={"CPU": 2}))
    policy.after_controller_start(SimpleNamespace(run_id="run"))  # type: ignore[arg-type]
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision == ResizeDecision(num_workers=3, resources_per_worker={"CPU": 2})
    policy.before_controller_abort()
