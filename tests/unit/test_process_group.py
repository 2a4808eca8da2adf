"""Process group of the ranks: its interface is the one with the address that Ray uses, its store listens there alone."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest

from pipeline.ports import LOOPBACK, free_port
from pipeline.train import process_group
from pipeline.train.process_group import GLOO_INTERFACE, GroupBackend, ProcessGroup, rendezvous, use_network_of_ray

INTERFACES = {
    "lo": ("127.0.0.1", "::1"),
    "mgmt0": ("02:00:00:00:00:01", "192.168.7.4"),
    "ib0": ("10.0.3.4", "fe80::3%ib0"),
}


@pytest.mark.parametrize(
    ("node", "given", "used"),
    [("10.0.3.4", None, "ib0"), ("fe80::3", None, "ib0"), ("10.0.3.4", "mgmt0", "mgmt0"), ("203.0.113.9", None, None)],
    ids=["that of Ray", "IPv6", "the owner's choice stays", "behind an address translation gloo is left alone"],
)
def test_gloo_gets_the_interface_of_rays_address(
    monkeypatch: pytest.MonkeyPatch, node: str, given: str | None, used: str | None
) -> None:
    hosts = {name: [SimpleNamespace(address=one) for one in found] for name, found in INTERFACES.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: hosts)
    monkeypatch.setattr(process_group.ray.util, "get_node_ip_address", lambda: node)
    # Set first, so that what the function sets is undone too.
    monkeypatch.setenv(GLOO_INTERFACE, given or "")
    if given is None:
        monkeypatch.delenv(GLOO_INTERFACE)
    use_network_of_ray()
    assert os.environ.get(GLOO_INTERFACE) == used


def test_a_single_rank_joins_no_group() -> None:
    # A list has no way to call a function on a rank.
    GroupBackend().on_start(["the only rank"], ProcessGroup("gloo"))


def test_the_ranks_meet_at_the_address_of_ray_alone() -> None:
    port = free_port()
    store = rendezvous((LOOPBACK, port), 0, 1)
    found = [one.laddr.ip for one in psutil.Process().net_connections("tcp") if one.laddr.port == port]
    assert LOOPBACK in found and not {"0.0.0.0", "::"} & set(found)
    store.set("key", "value")
    assert store.get("key") == b"value"
