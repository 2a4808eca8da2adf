"""A tracking store and folders with each kind of leftover that `prune` removes, and with each that must stay."""

import json
import os
import socket
from functools import partial
from pathlib import Path

from pipeline.driver import Driver, _start
from pipeline.spool import PARENT_TAG, NewRun, Sent, Spool
from pipeline.storage import StoragePath
from pipeline.tracking.store import DRIVER_TAG, TrackingStore
from tests.grids import DEAD_DRIVER

LIVING = str(Driver(socket.gethostname(), os.getppid(), _start(os.getppid())))
GOING = {
    "failed": {"failed final", "failed-launch launch", "failed-reproduction final", "empty-launch launch"},
    "superseded": {"old final", "old-launch launch", "cut-before-a-result final", "cell-of-no-page final"},
    "checkpoints": {"new final", "deleted.final"},
    "reports": {"grid.html"},
}
RUNS = {name.split()[0] for kind in ("failed", "superseded") for name in GOING[kind]}
PATHS = (*(f"runs/ablation/{name}.final" for name in ("failed", "new", "deleted")), ".mgmrn/reports/grid.html")


class World:
    """A store with runs of all kinds by their names, and the working folder."""

    def __init__(self, store: TrackingStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.ids: dict[str, str] = {}

    def add(self, name: str, status: str = "FINISHED", below: str = "", driver: str = DEAD_DRIVER, **tags: str) -> str:
        """Add a run later than those before; without `config`, one that no other is like."""
        reason, config = tags.pop("reason", "a reason"), tags.pop("config", name)
        own = {"kind": "run", "config_hash": config, "split": "final"} | tags
        all_tags = {f"mgmrn.{key}": value for key, value in own.items()} | {DRIVER_TAG: driver}
        all_tags |= {PARENT_TAG: self.ids[below]} if below else {}
        run_id = self.ids[name] = self.store.create_run(NewRun(name, all_tags, time_ms=1 + len(self.ids)))
        if status != "RUNNING":
            self.store.finish(run_id, status, reason)
        return run_id

    def keep(self, name: str) -> Spool:
        """Give a run a folder in the storage, and a wholly sent spool."""
        folder = self.folder / "runs" / "ablation" / f"{name}.final"
        (folder / "checkpoint_000002_1").mkdir(parents=True)
        (folder / "checkpoint_000002_1" / "state.pt").write_text("weights")
        spool = Spool(StoragePath.parse(folder))
        spool.append_end("FINISHED", "finished")
        last = {entry.writer: entry.number for entry in spool.read()}
        Sent(self.ids[name], last, self.store.identity, is_done=True).save(spool)
        return spool

    @property
    def active(self) -> set[str]:
        return {run.name for run in self.store.runs_of(("mgmrn/%",), "")}

    @property
    def files(self) -> set[str]:
        """Paths of everything that is beside the store."""
        places = (self.folder / "runs", self.folder / ".mgmrn")
        found = {str(path.relative_to(self.folder)) for place in places for path in place.rglob("*")}
        return {path for path in found if "claims" not in path}

    def claim(self, name: str) -> None:
        """Let another, living driver hold the folder of a run."""
        (StoragePath.parse(self.folder) / f"runs/ablation/claims/{name}.final~0").write(LIVING.encode())


def make_world(store: TrackingStore, folder: Path) -> World:
    made = World(store, folder)
    add, launch, ids = made.add, partial(made.add, kind="launch", split="launch"), made.ids
    launch("old-launch")
    store.client.create_logged_model(store.experiment_id, source_run_id=add("old", below="old-launch", config="a"))
    launch("half-old-launch")
    add("cited-by-its-launch", below="half-old-launch", config="b")
    add("not-superseded", below="half-old-launch")
    launch("empty-launch", "KILLED")
    launch("failed-launch", "FAILED")
    add("failed", "FAILED", below="failed-launch", reason="out-of-memory")
    launch("cut-launch", "KILLED")
    add("cut", "RUNNING", below="cut-launch")
    add("lost-workers", "FAILED", reason="workers-lost")
    add("cut-before-a-result", "KILLED", config="b")
    launch("living-launch", "RUNNING", driver=LIVING)
    add("failed-of-a-living-launch", "FAILED", below="living-launch")
    add("held-by-a-living-driver", "FAILED")
    add("not-wholly-sent", "FAILED")
    for name in ("champion", "seed-of-the-champion", "linked", "reproduced"):
        add(name, **({"group_hash": "g", "code_digest": "d"} if "champion" in name else {}))
    model = f"mgmrn-{store.experiment_id}"
    store.client.create_registered_model(model)
    store.client.create_model_version(model, store.client.get_run(ids["champion"]).info.artifact_uri, ids["champion"])
    store.client.set_registered_model_alias(model, "champion", "1")
    add("link", kind="link", linked_run_id=ids["linked"])
    add("reproduction", kind="reproduction", reproduces=ids["reproduced"])
    add("failed-reproduction", "FAILED", kind="reproduction", reproduces=ids["old"])
    launch("grid", kind="ablation")
    for name in ("of-the-comparison", "of-the-report", "of-a-page", "of-no-page"):
        add(f"cell-{name}", below="grid", config="cell")
    launch("grid-without-comparison", "KILLED", kind="ablation")
    add("cell-of-a-cut-grid", below="grid-without-comparison", config="cell")
    add("other-cell-of-a-cut-grid", below="grid-without-comparison")
    pages, reports = folder / "pages", folder / ".mgmrn" / "reports"
    for place in (pages / "report", reports):
        place.mkdir(parents=True)
        (place / "grid.html").write_text(ids["cell-of-the-report"])
    (reports / "changed.html").write_text(ids["cell-of-a-page"])
    (pages / "comparison.json").write_text(json.dumps({"run_ids": ids["cell-of-the-comparison"]}))
    store.log_artifacts(ids["grid"], pages)
    launch("search", "KILLED", kind="search")
    add("trial", below="search")
    add("stopped-trial", "KILLED", below="search", config="trial")
    launch("launch-of-runs-elsewhere")
    launch("new-launch")
    for config in ("a", "b", "cell", "champion", "seed-of-the-champion", "linked", "reproduced", "trial"):
        add("new" if config == "a" else f"new-{config}", below="new-launch", config=config)
    store.client.delete_run(add("deleted"))
    for name in ("failed", "cut", "champion", "trial", "new", "deleted"):
        made.keep(name)
    made.keep("not-wholly-sent").append(3, {"val/ausuc": 0.5})
    made.keep("held-by-a-living-driver")
    made.claim("held-by-a-living-driver")
    return made
