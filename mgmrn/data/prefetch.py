"""Preparing the next batch while the present one is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order, each made in a thread while the one before is in use.

    An error in making an item is raised where that item would have come.
    """
    source = iter(items)
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        pending = pool.submit(next, source, end)
        while (item := pending.result()) is not end:
            pending = pool.submit(next, source, end)
            yield item  # type: ignore[misc]
    finally:
        # Whoever lets go of the items may be this very thread, collecting garbage: it cannot wait for itself.
        pool.shutdown(wait=False, cancel_futures=True)
