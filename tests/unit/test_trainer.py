"""Ctrl-C during training reaches the driver, whose run is then closed as interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from pipeline.train import trainer
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
