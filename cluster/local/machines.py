"""What a host of one machine is, and what must be possible with it, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

HEAD = "head"

Kind = Literal["namespaces", "processes"]
State = Literal["up", "cut off", "lost"]


@dataclass(frozen=True)
class Host:
    """One host, from its start to its loss."""

    name: str
    """`head`, `w1`, `w2` …; a lost worker's name is not given again."""
    hostname: str
    """What the host calls itself; a head that takes another one's place calls itself otherwise."""
    folder: str
    """Of its files, in the group's folder."""
    address: str
    cpus: int
    process: int = 0
    """Id of the process that stands for it on this machine; 0 before it was started."""


class Machines(Protocol):
    """Makes hosts of one kind."""

    @property
    def addresses(self) -> str:
        """The first three numbers of the hosts' addresses."""

    def open(self) -> None:
        """Makes what all hosts of the group need."""

    def ray_options(self, host: Host) -> Mapping[str, str]:
        """What `ray start` must be told besides, by option."""

    def start(self, host: Host, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> int:
        """Starts a host.

        Args:
            host: not started yet.
            command: of a process that stays; started again when it ends.
            environment: of the command, and nothing else.
            folder: of the host, for its files; `log` in it takes the command's words.

        Returns:
            The id of the process that stands for the host.
        """

    def inside(self, host: Host, command: Sequence[str]) -> list[str]:
        """The command line that runs a command on the host."""

    def kill(self, host: Host) -> None:
        """Ends the host at once, without a word to the others; also one that is gone, or was never quite there."""

    def cut(self, host: Host) -> None:
        """Takes the host off the network."""

    def heal(self, host: Host) -> None:
        """Puts the host on the network again."""

    def state(self, host: Host) -> State:
        """How the host is."""

    def close(self) -> None:
        """Removes all that was made for the group, also what nobody remembers any more."""
