"""How the ranks of a run find each other: over the network that Ray itself uses, whatever else a host is plugged into.

Left to itself gloo takes the address that the host's own name stands for: often loopback, or none at all, and ranks on other hosts are
never reached. Ray knows the address by which the cluster sees a host; its interface is the right one. NCCL finds one by itself.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


def process_group(gpus_per_worker: int) -> TorchConfig:
    """NCCL between GPUs, gloo elsewhere."""
    return TorchConfig(backend="nccl") if gpus_per_worker else GlooConfig(backend="gloo")


@dataclass
class GlooConfig(TorchConfig):
    """A gloo process group over the cluster's own network."""

    @property
    def backend_cls(self) -> type[GlooBackend]:
        """What Ray Train sets up on every rank."""
        return GlooBackend


class GlooBackend(_TorchBackend):
    """Tells gloo where to listen, just before it does."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(use_network_of_ray)
        super().on_start(worker_group, backend_config)


def use_network_of_ray() -> None:
    """Called on a rank: tells gloo its interface, unless the host's owner has."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(GLOO_INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """Name of this host's interface that has an address; None where none has it, as behind an address translation."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in addresses):
            return name
    return None
