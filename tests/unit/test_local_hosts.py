"""What is said and noted of hosts of one machine, without making any."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.local import commands, ray_node
from cluster.local.commands import Network
from cluster.local.group import MOST_WORKERS, Group
from cluster.local.hosts import HostGroup
from cluster.local.machines import HEAD
from cluster.local.ray_node import Ports
from mgmrn.errors import ResourceError, UserError

NETWORK = Network("abcdefgh", "10.201.7")


@pytest.fixture
def group() -> Group:
    return Group("lab", "namespaces", "10.201.7", Ports(6379, 8265), cpus=2).with_head().with_worker().with_worker()


def test_names_of_interfaces_are_short_enough() -> None:
    interfaces = [NETWORK.bridge, NETWORK.cable(HEAD), NETWORK.cable(f"w{MOST_WORKERS}")]
    assert all(len(name) <= 15 for name in interfaces)
    assert len(set(interfaces)) == 3


def test_the_hardware_address_follows_from_the_address() -> None:
    """Two hosts that follow one another at an address must look the same to the others, who remember where it was."""
    cables = [" ".join(command) for command in commands.plug_in(NETWORK, HEAD, "10.201.7.2") if "veth" in command]
    assert len(cables) == 1
    assert "address 02:00:0a:c9:07:02" in cables[0]


def test_a_group_is_noted_whole(group: Group) -> None:
    started = group.with_process("w1", 77)
    assert started.host("w1").process == 77
    assert Group.from_json(json.dumps(asdict(started))) == started


def test_a_lost_workers_name_and_address_are_not_given_again(group: Group) -> None:
    later = group.without("w2").with_worker()
    assert later.names == (HEAD, "w1", "w3")
    assert later.host("w3").address not in {host.address for host in group.hosts}
    assert later.host("w3").cpus == 2


def test_a_new_head_is_another_machine_at_the_same_address(group: Group) -> None:
    again = group.with_head()
    assert sorted(again.names) == sorted(group.names)
    old, new = group.head, again.head
    assert new.address == old.address
    assert new.hostname != old.hostname and new.folder != old.folder


def test_an_unknown_host_is_told_with_those_that_are_there(group: Group) -> None:
    with pytest.raises(UserError, match="head, w1, w2"):
        group.host("w9")


def test_addresses_end(group: Group) -> None:
    full = Group("lab", "namespaces", "10.201.7", Ports(6379, 8265), cpus=1, workers=MOST_WORKERS)
    with pytest.raises(ResourceError):
        full.with_worker()
    assert int(group.hosts[-1].address.rpartition(".")[2]) + MOST_WORKERS - 2 <= 254


def test_the_head_alone_gets_the_credentials_of_the_tracking_server(group: Group) -> None:
    inherited = {"MLFLOW_TRACKING_PASSWORD": "x", "RAY_ADDRESS": "elsewhere:1", "LANG": "C", "PATH": "/bin"}
    token = Path("/token")
    head, worker = (ray_node.environment(group.host(name), token, inherited) for name in (HEAD, "w1"))
    assert "MLFLOW_TRACKING_PASSWORD" in head and "MLFLOW_TRACKING_PASSWORD" not in worker
    for one in (head, worker):
        assert "RAY_ADDRESS" not in one
        assert (one["LANG"], one["RAY_AUTH_MODE"], one["RAY_AUTH_TOKEN_PATH"]) == ("C", "token", "/token")
        assert one["PATH"].endswith(":/bin"), "the virtual environment's programs come first"


def test_workers_are_told_where_the_head_is(group: Group) -> None:
    head, worker = (ray_node.start_command(group.host(name), group.head, group.ports, {}) for name in (HEAD, "w1"))
    assert "--head" in head and "--num-cpus=0" in head and "--port=6379" in head
    assert "--head" not in worker and "--num-cpus=2" in worker and "--address=10.201.7.2:6379" in worker
    assert "--block" in head and "--block" in worker, "the host sees when Ray ends"


@pytest.mark.parametrize("name", ["", "Lab", "a-b", "abcdefghi", "../x", "1a"])
def test_a_name_that_could_not_name_interfaces_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--name"):
        HostGroup.up(1, name=name, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_group_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no group lab"):
        HostGroup.find(folder=tmp_path)
