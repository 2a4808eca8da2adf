"""One item ahead, in order, whoever lets go of the rest and whenever."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from mgmrn.data.loading import prefetch


def test_items_come_in_order_one_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number

    ahead = prefetch(items())
    assert next(ahead) == 0
    assert list(ahead) == [1, 2, 3] and made == [0, 1, 2, 3]


def test_an_error_comes_where_the_item_would_have_come() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    ahead = prefetch(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)


def test_its_own_thread_may_be_the_one_that_collects_it() -> None:
    """Garbage in a cycle is collected by whatever thread comes along."""
    collected = threading.Event()
    let_go = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        yield 2
        let_go.wait(10)
        gc.collect()
        collected.set()
        yield 3

    holder: list[object] = [prefetch(items())]
    holder.append(holder)
    assert next(holder[0]) == 1 and next(holder[0]) == 2  # type: ignore[call-overload]
    del holder
    let_go.set()
    # An exception that nobody can catch would fail the test: pytest looks for those.
    assert collected.wait(10)
