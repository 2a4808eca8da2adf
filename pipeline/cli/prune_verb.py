"""The verb `prune`: what may go of runs, checkpoints, caches and pages, and its removal."""

import shlex
from typing import Annotated, Literal

import typer

from pipeline import places
from pipeline.cli.options import DataRoot, Json, Storage, TrackingUri
from pipeline.console import Console, option, shell_command
from pipeline.databases import SQLITE
from pipeline.ports import LOOPBACK
from pipeline.redaction import redact_address
from pipeline.where import Where

Kind = Literal["failed", "superseded", "checkpoints", "caches", "reports"]
Named = Annotated[list[str] | None, typer.Option(metavar="FILE", help="One whose caches stay; may be repeated.")]

prune_app = typer.Typer()


@prune_app.command()
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
