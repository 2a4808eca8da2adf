"""What a rank that is alone asks in place of Ray Train's barrier. Apart from `controller`, which a rank has no need to load."""

from __future__ import annotations

from typing import Any

import ray
from ray import ObjectRef


class NoBarrier:
    """Answers at once what the actor at which ranks wait for one another would answer when all of them are there."""

    @property
    def broadcast_from_rank_zero(self) -> NoBarrier:
        """Spelt as the method of an actor is: `barrier.broadcast_from_rank_zero.remote(data=…)`."""
        return self

    def remote(self, *, data: Any, **_: Any) -> ObjectRef[Any]:
        """What rank 0 sent."""
        return ray.put(data)
