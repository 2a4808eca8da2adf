"""What is noted of a group of hosts, as a value: who they are, where they are, and who comes next."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from cluster.local.machines import HEAD, Host, Kind
from cluster.local.ray_node import Ports
from mgmrn.errors import ResourceError, UserError

MOST_WORKERS = 250


@dataclass(frozen=True)
class Group:
    """What is noted of a group."""

    name: str
    kind: Kind
    prefix: str
    """The first three numbers of the hosts' addresses."""
    ports: Ports
    cpus: int
    """Of each worker."""
    hosts: tuple[Host, ...] = ()
    heads: int = 0
    """Heads so far, lost ones included."""
    workers: int = 0
    """Workers so far, lost ones included."""

    @property
    def head(self) -> Host:
        """The latest head, lost or not."""
        return self.host(HEAD)

    def host(self, name: str) -> Host:
        """A host by its name.

        Raises:
            UserError: when there is none.
        """
        for host in self.hosts:
            if host.name == name:
                return host
        raise UserError(f"the group {self.name} has no host '{name}'", "", f"its hosts are {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of all hosts."""
        return tuple(host.name for host in self.hosts)

    def with_head(self) -> Group:
        """With a head that is to be started, in the place of one that was lost: another machine at the same address."""
        folder = f"{HEAD}{self.heads + 1}"
        head = Host(HEAD, f"{self.name}-{folder}", folder, f"{self.prefix}.2", cpus=0)
        return replace(self.without(HEAD), heads=self.heads + 1)._and(head)

    def with_worker(self) -> Group:
        """With one more worker that is to be started.

        Raises:
            ResourceError: when the addresses are used up.
        """
        number = self.workers + 1
        if number > MOST_WORKERS:
            raise ResourceError(f"a group can have {MOST_WORKERS} workers in its life", "take it down, and up again")
        name = f"w{number}"
        host = Host(name, f"{self.name}-{name}", name, f"{self.prefix}.{2 + number}", self.cpus)
        return replace(self, workers=number)._and(host)

    def with_process(self, name: str, process: int) -> Group:
        """With a host that has been started."""
        return replace(self, hosts=tuple(replace(h, process=process) if h.name == name else h for h in self.hosts))

    def without(self, name: str) -> Group:
        """Without a host."""
        return replace(self, hosts=tuple(host for host in self.hosts if host.name != name))

    def _and(self, host: Host) -> Group:
        return replace(self, hosts=(*self.hosts, host))

    @classmethod
    def from_json(cls, text: str) -> Group:
        """As `json.dumps(asdict(group))` wrote it."""
        value = json.loads(text)
        hosts = tuple(Host(**host) for host in value.pop("hosts"))
        return cls(**value | {"hosts": hosts, "ports": Ports(**value["ports"])})
