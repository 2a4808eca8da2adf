"""How long ranks take to add up their gradients, and what is left of their speed: the model on paper behind docs/scaling.md.

A ring of n ranks sends 2(n − 1)/n of the buffer through every link, in 2(n − 1) messages (Patarasuk and Yuan 2009). Over hosts with several
GPUs each, the sum is first taken inside the hosts and then, piece by piece, between them (NCCL's hierarchical rings).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """What one rank can send and receive at a time."""

    bytes_per_second: float
    latency_seconds: float


@dataclass(frozen=True)
class Step:
    """A training step of one rank by itself."""

    forward_seconds: float
    backward_seconds: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.forward_seconds + self.backward_seconds


def ring_seconds(size: float, ranks: int, link: Link) -> float:
    """Seconds of an all-reduce of `size` bytes among `ranks` on equal links."""
    messages = 2 * (ranks - 1)
    return messages * (size / ranks / link.bytes_per_second + link.latency_seconds)


def exchange_seconds(size: float, hosts: int, per_host: int, inside: Link, between: Link) -> float:
    """Seconds of an all-reduce over `hosts` with `per_host` GPUs each.

    Args:
        size: bytes of the gradients.
        hosts: how many.
        per_host: GPUs of each.
        inside: a GPU's link to the others of its host.
        between: a GPU's share of its host's link to the others.
    """
    return ring_seconds(size, per_host, inside) + ring_seconds(size / per_host, hosts, between)


def efficiency(step: Step, exchange: float) -> float:
    """Throughput per rank against a rank alone, where the exchange runs beside the backward pass.

    The last bucket is only ready when the backward pass is over; that it is a small part is taken as none. A step is as long as the
    longer of the two.
    """
    return step.seconds / (step.forward_seconds + max(step.backward_seconds, exchange))
