"""A group of hosts: brought up, looked after and taken down by any process, as its folder says what there is.

Every host is noted before it is made, so that `down` removes also what a crash left half made.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.local import namespaces, ray_node
from cluster.local.commands import Network
from cluster.local.group import Group
from cluster.local.machines import HEAD, Host, Kind, Machines, State
from cluster.local.namespaces import Namespaces
from cluster.local.processes import Processes
from cluster.local.ray_node import Ports
from mgmrn.atomic_file import replacing
from mgmrn.errors import ResourceError, UserError
from pipeline.console import say
from pipeline.places import HOME

FOLDER = HOME / "cluster"
NAME = "lab"
JOIN_SECONDS = 180.0
"""Three seconds on a quiet machine, a minute on a busy one."""
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class HostStatus:
    """How a host is, seen from this machine and from Ray."""

    host: Host
    state: State
    in_ray: bool
    """Whether Ray takes it for alive; it notices a loss some seconds late."""


class HostGroup:
    """A group that is there.

    Args:
        folder: of the group.
        group: what is noted of it.
        machines: make its hosts.
    """

    def __init__(self, folder: Path, group: Group, machines: Machines) -> None:
        self.folder = folder
        self.group = group
        self._machines = machines

    @classmethod
    def up(cls, workers: int, cpus: int = 1, name: str = NAME, folder: Path = FOLDER) -> HostGroup:
        """Starts a head without CPUs and some workers, and waits until Ray has them all.

        Args:
            workers: hosts besides the head.
            cpus: that Ray counts on each of them, whatever the machine has.
            name: of the group; several can stand side by side.
            folder: in which the group's folder is made.

        Raises:
            UserError: when there is a group of this name.
            ResourceError: when a host does not come up; nothing is left then.
        """
        if not re.fullmatch(r"[a-z][a-z0-9]{0,7}", name):
            raise UserError(f"'{name}' cannot name a group", "--name", "take up to 8 small letters and digits")
        group_folder = folder.resolve() / name
        if group_folder.exists() or (os.geteuid() == 0 and namespaces.is_there(name)):
            raise UserError(
                f"there is a group {name} already", str(group_folder), "take it down first, or choose another --name"
            )
        why_not = namespaces.refusal()
        if why_not is None:
            with Namespaces.free(name) as machines:
                hosts = cls._opened(group_folder, "namespaces", machines, machines.ports, cpus, name)
        else:
            say(f"no network namespaces here ({why_not}): hosts are plain processes")
            processes = Processes.free(name)
            hosts = cls._opened(group_folder, "processes", processes, processes.ports, cpus, name)
        try:
            hosts._start(hosts.group.with_head())
            hosts._wait(lambda: ray_node.answers(hosts.group.head, hosts.group.ports), "the head answers", HEAD)
            for _ in range(workers):
                hosts._start(hosts.group.with_worker())
            hosts._wait_for(*hosts.group.names)
        except BaseException:
            hosts.down()
            raise
        return hosts

    @classmethod
    def _opened(cls, folder: Path, kind: Kind, machines: Machines, ports: Ports, cpus: int, name: str) -> HostGroup:
        hosts = cls(folder, Group(name, kind, machines.addresses, ports, cpus), machines)
        hosts._note(hosts.group)
        try:
            hosts._make_token()
            machines.open()
        except BaseException:
            hosts.down()
            raise
        return hosts

    @classmethod
    def find(cls, name: str = NAME, folder: Path = FOLDER) -> HostGroup:
        """A group that some process has brought up.

        Raises:
            UserError: when there is none of this name.
        """
        group_folder = folder.resolve() / name
        try:
            group = Group.from_json((group_folder / "group.json").read_text())
        except FileNotFoundError:
            raise UserError(f"there is no group {name}", str(group_folder), "bring one up, or see --name") from None
        if group.kind == "namespaces":
            return cls(group_folder, group, Namespaces(Network(group.name, group.prefix)))
        return cls(group_folder, group, Processes(group.name, group.prefix))

    @classmethod
    def remove(cls, name: str = NAME, folder: Path = FOLDER) -> None:
        """`down`, also for a group whose folder is gone or half written.

        Raises:
            UserError: when there is nothing of this name.
        """
        try:
            cls.find(name, folder).down()
        except UserError:
            if os.geteuid() != 0 or not namespaces.is_there(name):
                raise
            Namespaces(Network(name, "")).close()

    @property
    def token(self) -> Path:
        """File with what must be known to talk to the group's Ray."""
        return self.folder / "token"

    @property
    def gateway(self) -> str:
        """This machine's address on the hosts' network: what listens there is reached from all of them."""
        return f"{self.group.prefix}.1"

    @property
    def description(self) -> str:
        """What there is, in a sentence."""
        made_of = {"namespaces": "network namespaces", "processes": "plain processes, which cannot be cut off"}
        hosts = ", ".join(f"{host.name} {host.address}" for host in self.group.hosts)
        return f"{len(self.group.hosts)} hosts are up, made of {made_of[self.group.kind]}: {hosts}"

    @property
    def client_environment(self) -> dict[str, str]:
        """What a command on this machine needs to reach the head."""
        return ray_node.client_environment(self.group.head, self.group.ports, self.token)

    def add(self) -> Host:
        """One more worker. It gets this command's environment, as all hosts get that of the command that starts them.

        Raises:
            ResourceError: when it does not come up; it is gone then.
        """
        group = self.group.with_worker()
        return self._joined(group, group.hosts[-1].name)

    def replace(self, name: str) -> Host:
        """Another host for one that is lost, or is killed now; for the head, at its address.

        Raises:
            UserError: when there is no such host.
            ResourceError: when the new host does not come up.
        """
        self.kill(name)
        if name != HEAD:
            return self.add()
        return self._joined(self.group.with_head(), HEAD)

    def kill(self, name: str) -> None:
        """Takes a host's power away: whatever runs on it is gone, and says nothing."""
        self._machines.kill(self.group.host(name))
        if name != HEAD:
            # A head stays noted: workers look for it where it was, and another takes its place.
            self._note(self.group.without(name))

    def cut(self, name: str) -> None:
        """Pulls a host's cable: what runs on it goes on alone."""
        self._machines.cut(self.group.host(name))

    def heal(self, name: str) -> None:
        """Puts a host's cable back."""
        self._machines.heal(self.group.host(name))

    def inside(self, name: str, command: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The command line that runs a command on a host, and its environment."""
        host = self.group.host(name)
        return self._machines.inside(host, command), self._environment(host)

    def status(self) -> tuple[HostStatus, ...]:
        """All hosts that are not given up."""
        alive = self._alive()
        return tuple(HostStatus(host, self._machines.state(host), host.address in alive) for host in self.group.hosts)

    def down(self) -> None:
        """Removes all that was made for the group."""
        for host in self.group.hosts:
            self._machines.kill(host)
        self._machines.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def host_folder(self, host: Host) -> Path:
        """Where a host keeps its files; Ray's logs are under `ray`."""
        return self.folder / host.folder

    def _make_token(self) -> None:
        """For this user; under sudo for the one who called it, who submits jobs without."""
        self.token.touch(mode=0o600)
        self.token.write_text(secrets.token_hex(32))
        if "SUDO_UID" in os.environ:
            os.chown(self.token, int(os.environ["SUDO_UID"]), -1)

    def _joined(self, group: Group, name: str) -> Host:
        self._start(group)
        try:
            self._wait_for(name)
        except BaseException:
            self.kill(name)
            raise
        return self.group.host(name)

    def _start(self, group: Group) -> None:
        """Starts the host that was added last."""
        self._note(group)
        host = group.hosts[-1]
        command = ray_node.start_command(host, group.head, group.ports, self._machines.ray_options(host))
        process = self._machines.start(host, command, self._environment(host), self.host_folder(host))
        self._note(group.with_process(host.name, process))

    def _wait_for(self, *names: str) -> None:
        wanted = {self.group.host(name).address for name in names}
        self._wait(lambda: wanted <= self._alive(), "Ray has it", *names)

    def _wait(self, condition: Callable[[], bool], what: str, *names: str) -> None:
        deadline = time.monotonic() + JOIN_SECONDS
        while not condition():
            lost = [name for name in names if self._machines.state(self.group.host(name)) == "lost"]
            if lost or time.monotonic() > deadline:
                shown = lost or names
                words = [_last_words(self.host_folder(self.group.host(name)) / "log") for name in shown]
                raise ResourceError(f"{', '.join(shown)} did not come up ({what}): {' | '.join(words)}")
            time.sleep(POLL_SECONDS)

    def _environment(self, host: Host) -> dict[str, str]:
        return ray_node.environment(host, self.token, os.environ)

    def _alive(self) -> frozenset[str]:
        return ray_node.alive(self.group.head, self.group.ports, self.token)

    def _note(self, group: Group) -> None:
        self.group = group
        with replacing(self.folder / "group.json") as file:
            file.write(json.dumps(asdict(self.group), indent=1).encode())


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return " ".join(line.strip() for line in [line for line in lines if line.strip()][-3:]) or "it said nothing"
