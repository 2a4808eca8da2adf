"""A thread that does, one after another, what would make Ray Tune's loop wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Clerk:
    """Does in a thread of its own, one thing after another, what would make Ray Tune's loop wait: plots, uploads, the end of a run."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="clerk")
        self._errands: list[Future[Any]] = []

    def do(self, errand: Callable[[], Any]) -> None:
        """Queues an errand."""
        self._errands.append(self._pool.submit(errand))

    def finish(self) -> None:
        """Waits for all errands.

        Raises:
            Exception: what the first of them that failed raised.
        """
        self._pool.shutdown(wait=True)
        for errand in self._errands:
            errand.result()
