"""The controller in the driver's own process: Ctrl-C reaches the driver, whose run is then closed as interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from pipeline.train import controller
from pipeline.train.alone import NoBarrier
from pipeline.train.controller import Controller, Ranks


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def ended() -> list[str]:
    """What was told to end, in order."""
    return []


@pytest.fixture(params=[RayActorError(), ValueError("Worker group is not active.")], ids=["gone", "not there"])
def running(request: pytest.FixtureRequest, ended: list[str]) -> Callable[[Callable[[], Any]], Controller]:
    """A controller with ranks, whose run is what it is given."""

    error: Exception = request.param

    def abort() -> None:
        ended.append("ranks")
        # They may be gone already, or not all there yet.
        raise error

    class Running(Controller):
        def __init__(self, work: Callable[[], Any]) -> None:
            self._work = work
            self._worker_group: Any = SimpleNamespace(abort=abort)
            self._controller_callback_manager: Any = SimpleNamespace(invoke_best_effort=ended.append)

        async def run(self) -> None:
            await self._work()

        def get_result(self) -> Any:
            return "result"

    return Running


async def waiting() -> None:
    """As between two polls."""
    asyncio.get_running_loop().call_soon(interrupt)
    await asyncio.sleep(30)


async def asking() -> None:
    """As in a call of Ray's."""
    interrupt()


@pytest.mark.parametrize("work", [waiting, asking])
def test_an_interrupt_ends_the_ranks_and_then_the_driver(
    running: Callable[[Any], Controller], ended: list[str], work: Callable[[], Any]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        running(work).run_here()
    assert ended == ["before_controller_abort", "ranks"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_ends_by_itself_has_nothing_to_end(running: Callable[[Any], Controller], ended: list[str]) -> None:
    async def done() -> None:
        pass

    assert running(done).run_here() == "result"
    assert ended == []


@pytest.mark.parametrize("size", [1, 2])
def test_only_ranks_that_have_others_keep_the_actor_at_which_they_wait(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    told: list[dict[str, Any]] = []
    killed: list[str] = []
    monkeypatch.setattr(controller, "ray", SimpleNamespace(kill=killed.append, get=lambda found: found))
    init = SimpleNamespace(remote=lambda **content: told.append(content))
    worker = SimpleNamespace(actor=SimpleNamespace(init_train_context=init), distributed_context="context")
    ranks = Ranks.__new__(Ranks)
    ranks._train_run_context = ranks._storage_context = ranks._worker_callbacks_to_propagate = None  # type: ignore[assignment]
    monkeypatch.setattr(Ranks, "_decorate_worker_log_file_paths", staticmethod(lambda workers: workers))
    ranks._init_train_context_on_workers([worker] * size, "actor", {"rank": list(range(size))})  # type: ignore[list-item]
    assert [content["rank"] for content in told] == list(range(size))
    barriers = {type(content["synchronization_actor"]) for content in told}
    assert (barriers, killed) == (({NoBarrier}, ["actor"]) if size == 1 else ({str}, []))


def test_a_rank_that_is_alone_hears_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "put", lambda value: ("stored", value))
    answer: Any = NoBarrier().broadcast_from_rank_zero.remote(world_rank=0, world_size=1, data="checkpoint-3")
    assert answer == ("stored", "checkpoint-3")
