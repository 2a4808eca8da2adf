"""The interface over which ranks find each other is the one with the address that Ray uses."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from pipeline.ports import LOOPBACK, free_port
from pipeline.train import process_group
from pipeline.train.process_group import (
    GLOO_INTERFACE,
    GroupBackend,
    ProcessGroup,
    interface_of,
    rendezvous,
    use_network_of_ray,
)


def address(text: str, family: int = socket.AF_INET) -> SimpleNamespace:
    return SimpleNamespace(family=family, address=text)


@pytest.fixture
def two_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = {
        "lo": [address("127.0.0.1"), address("::1", socket.AF_INET6)],
        "mgmt0": [address("02:00:00:00:00:01", -1), address("192.168.7.4")],
        "ib0": [address("10.0.3.4"), address("fe80::3%ib0", socket.AF_INET6)],
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: hosts)


@pytest.mark.usefixtures("two_networks")
def test_the_interface_is_found_by_its_address() -> None:
    assert interface_of("10.0.3.4") == "ib0"
    assert interface_of("fe80::3") == "ib0"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("10.0.3.40") is None


@pytest.mark.usefixtures("two_networks")
@pytest.mark.parametrize(
    ("node", "given", "used"),
    [("10.0.3.4", None, "ib0"), ("10.0.3.4", "mgmt0", "mgmt0"), ("203.0.113.9", None, None)],
    ids=["that of Ray", "the owner's choice stays", "behind an address translation gloo is left alone"],
)
def test_gloo_is_told(monkeypatch: pytest.MonkeyPatch, node: str, given: str | None, used: str | None) -> None:
    monkeypatch.setattr(process_group.ray.util, "get_node_ip_address", lambda: node)
    # Set first, so that what the function sets is undone too.
    monkeypatch.setenv(GLOO_INTERFACE, given or "")
    if given is None:
        monkeypatch.delenv(GLOO_INTERFACE)
    use_network_of_ray()
    assert os.environ.get(GLOO_INTERFACE) == used


def test_a_rank_that_is_alone_waits_for_nobody() -> None:
    class Alone:
        def __len__(self) -> int:
            return 1

    # Has no way to call anything on a rank.
    GroupBackend().on_start(Alone(), ProcessGroup("gloo"))


def test_the_ranks_meet_at_the_address_of_ray_alone() -> None:
    port = free_port()
    store = rendezvous((LOOPBACK, port), 0, 1)
    found = [one.laddr.ip for one in psutil.Process().net_connections("tcp") if one.laddr.port == port]
    assert LOOPBACK in found and not {"0.0.0.0", "::"} & set(found)
    store.set("key", "value")
    assert store.get("key") == b"value"
