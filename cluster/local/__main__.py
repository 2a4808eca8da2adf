"""`python -m cluster.local VERB`: several hosts on one machine."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cluster.local.hosts import FOLDER, NAME, HostGroup
from mgmrn.errors import ResourceError, UserError
from pipeline.cli.options import APP_OPTIONS
from pipeline.console import Console, say
from pipeline.errors import exit_code

app = typer.Typer(help="Several hosts on one machine, to try a cluster on.", **APP_OPTIONS)

HostName = Annotated[str, typer.Argument(metavar="HOST", help="As `status` shows it: head, w1, w2 …")]
Name = Annotated[str, typer.Option(help="Of the group; several can stand side by side.")]
Folder = Annotated[Path, typer.Option(help="Where groups are noted.")]


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=0, max=100, help="Hosts besides the head.")] = 2,
    cpus: Annotated[int, typer.Option(min=1, help="Of each worker, as Ray counts them.")] = 1,
    name: Name = NAME,
    folder: Folder = FOLDER,
) -> None:
    """Bring up a head and some workers. They get the environment of this command; the head alone its MLFLOW_… variables."""
    with _explained():
        hosts = HostGroup.up(workers, cpus, name, folder)
        say(hosts.description)
        for variable, value in hosts.client_environment.items():
            say(f"  {variable}={value}")
        option = "" if name == NAME else f" --name {name}"
        say(
            f'set these by: eval "$(python -m cluster.local env{option})"; remove all by: python -m cluster.local down{option}'
        )


@app.command()
def env(name: Name = NAME, folder: Folder = FOLDER) -> None:
    """Print what a shell needs to reach the head, for `eval`."""
    with _explained():
        for variable, value in HostGroup.find(name, folder).client_environment.items():
            Console().line(f"export {variable}={shlex.quote(value)}")


@app.command()
def status(name: Name = NAME, folder: Folder = FOLDER) -> None:
    """Show the hosts, as this machine sees them and as Ray does."""
    with _explained():
        hosts = HostGroup.find(name, folder)
        rows = [
            [one.host.name, one.host.address, str(one.host.cpus), one.state, "alive" if one.in_ray else "–"]
            for one in hosts.status()
        ]
        Console().table(["host", "address", "CPUs", "state", "in Ray"], rows)


@app.command()
def add(name: Name = NAME, folder: Folder = FOLDER) -> None:
    """Bring up one more worker."""
    with _explained():
        host = HostGroup.find(name, folder).add()
        say(f"{host.name} has joined at {host.address}")


@app.command()
def kill(host: HostName, name: Name = NAME, folder: Folder = FOLDER) -> None:
    """Take a host's power away."""
    with _explained():
        HostGroup.find(name, folder).kill(host)


@app.command()
def replace(host: HostName, name: Name = NAME, folder: Folder = FOLDER) -> None:
    """Kill a host, if it is not lost already, and bring up another one; a new head stands at the old one's address."""
    with _explained():
        new = HostGroup.find(name, folder).replace(host)
        say(f"{new.name} has joined at {new.address}")


@app.command()
def cut(host: HostName, name: Name = NAME, folder: Folder = FOLDER) -> None:
    """Cut a host off from the network."""
    with _explained():
        HostGroup.find(name, folder).cut(host)


@app.command()
def heal(host: HostName, name: Name = NAME, folder: Folder = FOLDER) -> None:
    """Put a host back on the network."""
    with _explained():
        HostGroup.find(name, folder).heal(host)


@app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
def run(
    host: HostName,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND …")],
    name: Name = NAME,
    folder: Folder = FOLDER,
) -> None:
    """Run a command on a host."""
    with _explained():
        words, environment = HostGroup.find(name, folder).inside(host, command)
        os.execvpe(words[0], words, environment)


@app.command()
def down(name: Name = NAME, folder: Folder = FOLDER) -> None:
    """Remove all that was made for the hosts, also of a group that was only half up."""
    with _explained():
        HostGroup.remove(name, folder)


@contextmanager
def _explained() -> Iterator[None]:
    """A mistake is answered with one sentence and an exit code."""
    try:
        yield
    except (UserError, ResourceError) as error:
        say(f"error: {error}")
        raise typer.Exit(exit_code(error)) from error


if __name__ == "__main__":
    sys.exit(app())
