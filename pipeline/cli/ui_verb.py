"""The verb `ui`: MLflow's UI for the store at hand, and the addresses of what is looked for in it."""

import webbrowser
from contextlib import suppress
from typing import Annotated

import typer

from pipeline import places
from pipeline.cli.options import Json, TrackingUri
from pipeline.console import Console
from pipeline.interruption import Interruption
from pipeline.ports import LOOPBACK

ui_app = typer.Typer()


@ui_app.command()
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
