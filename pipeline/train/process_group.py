"""Process group of torch over the ranks of a run; Ray's own `TorchConfig` loads torch in driver and controller too (docs/adr/0009).

By default gloo takes the address of the host's own name, often loopback, and ranks on other hosts are never reached. The right interface is
the one with the address by which Ray knows the host. NCCL finds one by itself.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import psutil  # type: ignore[import-untyped]
import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

from pipeline.ports import EVERYWHERE, free_port

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
PATIENCE = timedelta(minutes=30)
FAREWELL_SECONDS = 30.0


@dataclass
class ProcessGroup(BackendConfig):
    """A process group over a run's ranks: NCCL between GPUs, gloo elsewhere."""

    backend: Literal["gloo", "nccl"]

    @property
    def backend_cls(self) -> type[GroupBackend]:
        return GroupBackend

    @property
    def train_func_context(self) -> Any:
        return on_its_own_gpu


class GroupBackend(Backend):
    """Tells every rank where rank 0 listens; runs beside the controller. A single rank gets no group."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroup)
        size = len(worker_group)
        if size == 1:  # A thread of gloo's wakes a hundred times a second, also without other ranks.
            return
        meeting = worker_group.execute_single(0, meeting_point)
        joining = [
            worker_group.execute_single_async(rank, join, backend_config.backend, meeting, rank, size)
            for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        # A rank that hangs is ended with its process.
        with suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(leave), timeout=FAREWELL_SECONDS)


@contextmanager
def on_its_own_gpu() -> Iterator[None]:
    """Makes the rank's own GPU the default one."""
    import ray.train.torch
    import torch

    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    yield


def meeting_point() -> tuple[str, int]:
    """Host and port at which rank 0, which calls this, can listen."""
    return ray.util.get_node_ip_address(), free_port(EVERYWHERE)


def join(backend: str, meeting: tuple[str, int], rank: int, size: int) -> None:
    """Joins the group; called on each rank, it returns when all are there."""
    import torch.distributed

    if backend == "gloo":
        use_network_of_ray()
    else:
        # Ranks that wait for one that is gone give up.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    store = rendezvous(meeting, rank, size)
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)


def rendezvous(meeting: tuple[str, int], rank: int, size: int) -> Any:
    """The `TCPStore` by which ranks find one another. Rank 0 listens at Ray's address alone; torch's default is all interfaces."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, port = meeting
    if rank:
        return TCPStore(host, port, size, is_master=False, timeout=PATIENCE)
    # Behind an address translation no interface has the address.
    own = host if interface_of(host) else EVERYWHERE
    listener = socket.create_server((own, port), family=socket.AF_INET6 if ":" in own else socket.AF_INET)
    return TCPStore(host, port, size, is_master=True, timeout=PATIENCE, master_listen_fd=listener.detach())


def leave() -> None:
    """Leaves the group; called on each rank."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def use_network_of_ray() -> None:
    """Tells gloo its interface, unless the host's owner has set one."""
    if interface := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault(GLOO_INTERFACE, interface)


def interface_of(address: str) -> str | None:
    """Name of this host's interface that has an address; None where none has it, as behind an address translation."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, own in interfaces if address in [one.address.partition("%")[0] for one in own]), None)
