"""Ctrl-C during training reaches the driver, whose run is then closed as interrupted; who decides of a run's size."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, ResizeDecision, ScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.train import trainer
from pipeline.train.cluster import Placement
from pipeline.train.fixed_size import FixedSize
from pipeline.train.trainer import LeanTrainer


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_the_workers_and_then_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get(reference: str, timeout: float) -> None:
        asked.append(reference)
        # The controller ends itself, which is an error to whoever asked it.
        raise RayActorError

    monkeypatch.setattr(trainer.ray, "get", get)
    controller: Any = SimpleNamespace(abort=SimpleNamespace(remote=lambda: "abort"))
    LeanTrainer._register_sigint_handler(LeanTrainer.__new__(LeanTrainer), controller)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert asked == ["abort"]


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

    def run(self: LeanTrainer, **parts: Any) -> SimpleNamespace:
        given.update(parts)
        return SimpleNamespace(error=None)

    monkeypatch.setattr(DataParallelTrainer, "_initialize_and_run_controller", run)
    LeanTrainer.on(placement, print, "{}", RunConfig(name="run", storage_path=str(tmp_path))).fit()
    assert type(given["scaling_policy"]) is policy


def test_a_run_of_fixed_size_asks_for_its_ranks_and_nobody_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.ray, "get", lambda *_, **__: pytest.fail("an actor was asked"))
    policy = FixedSize(ScalingConfig(num_workers=3, resources_per_worker={"CPU": 2}))
    policy.after_controller_start(SimpleNamespace(run_id="run"))  # type: ignore[arg-type]
    decision = policy.make_decision_for_non_running_worker_group()
    assert decision == ResizeDecision(num_workers=3, resources_per_worker={"CPU": 2})
    policy.before_controller_abort()
