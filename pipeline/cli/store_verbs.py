"""Verbs about what is tracked and stored: `ui`, and `prune`, which removes what may go."""

import shlex
import webbrowser
from contextlib import suppress
from typing import Annotated, Literal

import typer

from pipeline import places
from pipeline.cli.options import DataRoot, Json, Storage, TrackingUri
from pipeline.console import Console, option, shell_command
from pipeline.databases import SQLITE
from pipeline.interruption import Interruption
from pipeline.ports import LOOPBACK
from pipeline.redaction import redact_address
from pipeline.where import Where

Kind = Literal["failed", "superseded", "checkpoints", "caches", "reports"]
Named = Annotated[list[str] | None, typer.Option(metavar="FILE", help="One whose caches stay; may be repeated.")]

store_app = typer.Typer()


@store_app.command()
def ui(
    name: Annotated[str | None, typer.Argument(metavar="NAME|RUN", help="Grid, search or run to show.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of this machine.")] = 5000,
    links: Annotated[bool, typer.Option("--links", help="Print the addresses and start no server.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the first page in a browser.")] = False,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    as_json: Json = False,
) -> None:
    """Serve MLflow's UI until Ctrl-C, and print the addresses of a grid, search or run, or of all experiments.

    A server that --tracking-uri names is there already.
    """
    from pipeline.tracking.store import TrackingStore
    from pipeline.tracking.ui import pages, serve

    console, store = Console(as_json), TrackingStore.open(tracking_uri)
    is_served = tracking_uri.startswith("http")
    scheme, _, place = tracking_uri.partition("://")
    # A browser asks for credentials by itself.
    base = f"{scheme}://{place.rpartition('@')[2].rstrip('/')}" if is_served else f"http://{LOOPBACK}:{port}"
    found = pages(store, base, name)
    server = None if is_served or links else serve(store.uri, port)
    try:
        width = max(map(len, found))
        for title, address in found.items():
            console.line(f"{title.ljust(width)}  {address}")
        console.result({"pages": found})
        if open_page:
            webbrowser.open(next(iter(found.values())))
        if server is not None:
            with suppress(Interruption):
                server.wait()
    finally:
        if server is not None:
            server.terminate()
            server.wait()


@store_app.command()
def prune(
    only: Annotated[Kind | None, typer.Option(help="One kind; by default, all.")] = None,
    experiment: Named = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without it, nothing changes.")] = False,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    data_root: DataRoot = places.DATA_ROOT,
    storage: Storage = places.STORAGE,
    as_json: Json = False,
) -> None:
    """Show what may go and how many bytes: failed and superseded runs, checkpoints of finished runs, unused caches, reports.

    Never a registered model, a run that a launch or report cites, or one with a living driver.
    """
    from pipeline.prune import find_leftovers, remove
    from pipeline.tracking.store import TrackingStore

    console, store = Console(as_json), TrackingStore.open(tracking_uri)
    where, collect = Where(tracking_uri, data_root, storage), _collection(store.uri)
    found = [one for one in find_leftovers(store, where, experiment or ()) if only in (None, one.kind)]
    leftovers = [one.to_json() for one in found]
    if found:
        rows = [[one["kind"], one["name"], _size(one["bytes"]), one["reason"]] for one in leftovers]
        console.table(["kind", "name", "size", "reason"], rows)
    for one in found if yes else ():
        remove(store, one)
    size = sum(one["bytes"] for one in leftovers)
    text = f"{len(found)} removed, {_size(size)}" if yes else f"{len(found)} may go, {_size(size)}; --yes removes them"
    console.line(text if found else "nothing may go")
    if any(one.run for one in found):
        console.line(f"MLflow keeps deleted runs and their files until {collect}")
    console.result({"removed": yes, "bytes": size, "leftovers": leftovers, "gc": collect})


def _size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB"


def _collection(address: str) -> str:
    """Command of MLflow's garbage collection, and where or when it reaches database and files."""
    database = server = redact_address(address)
    condition = ""
    if address.startswith("http"):
        database, condition = "DATABASE", " on the server's host"
    elif address.startswith(SQLITE):
        store = option("--tracking-uri", address, places.TRACKING_URI, "MLFLOW_TRACKING_URI")
        server, condition = f"http://{LOOPBACK}:5000", f" while `{shell_command('ui', *store)}` runs"
    return shlex.join(("mlflow", "gc", "--backend-store-uri", database, "--tracking-uri", server)) + condition
