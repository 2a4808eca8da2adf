"""The verb `doctor`."""

from __future__ import annotations

import typer

from pipeline import places
from pipeline.cli.options import Address, DataRoot, Json, Storage, TrackingUri
from pipeline.console import Console

doctor_app = typer.Typer()


@doctor_app.command()
def doctor(
    address: Address = None,
    tracking_uri: TrackingUri = places.TRACKING_URI,
    data_root: DataRoot = places.DATA_ROOT,
    storage: Storage = places.STORAGE,
    as_json: Json = False,
) -> int:
    """Look at this machine and at what a run would use: one table, with a remedy for whatever is not as it should be.

    Exit code 2 when something that was named is wrong, 3 when this machine cannot run; warnings leave it at 0.
    """
    from dataclasses import asdict

    from pipeline.doctor.examine import Places, examine
    from pipeline.doctor.line import worst

    console = Console(as_json)
    lines = list(examine(Places(data_root, storage, tracking_uri, address)))
    console.table(["", "check", "found", "remedy"], [[one.state, one.check, one.found, one.remedy] for one in lines])
    states = [one.state for one in lines]
    counts = {state: states.count(state) for state in ("ok", "warn", "bad")}
    console.line(", ".join(f"{count} {state}" for state, count in counts.items()))
    console.result({"lines": [asdict(one) for one in lines], "counts": counts})
    return worst(lines)
