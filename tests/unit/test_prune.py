"""`prune`: what it names is what goes, from a store and folders with each kind of leftover and with each that must stay."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mgmrn.errors import ResourceError
from pipeline.cli.data_verbs import build_caches
from pipeline.config.compose import load_experiment
from pipeline.driver import Driver, _start
from pipeline.prune import find_leftovers, remove
from pipeline.spool import PARENT_TAG, NewRun, Sent, Spool
from pipeline.storage import StoragePath
from pipeline.tracking.store import DRIVER_TAG, TrackingStore
from pipeline.where import Where
from tests.grids import DEAD_DRIVER
from tests.tiny import write_benchmark

LIVING = str(Driver(socket.gethostname(), os.getppid(), _start(os.getppid())))
GOING = {
    "failed": {"failed final", "failed-launch launch", "failed-reproduction final", "empty-launch launch"},
    "superseded": {"old final", "old-launch launch", "cut-before-a-result final", "cell-of-no-page final"},
    "checkpoints": {"new final", "deleted.final"},
    "reports": {"grid.html"},
}
RUNS = {name.split()[0] for kind in ("failed", "superseded") for name in GOING[kind]}
PATHS = (*(f"runs/ablation/{name}.final" for name in ("failed", "new", "deleted")), ".mgmrn/reports/grid.html")
SMALL = (
    "model: {backbone: {name: resnet18, weights: none}, levels: [c4]}\nbenchmark: {name: TINY, images: {size: %s}}\n"
)


class World:
    """A store with runs of all kinds by their names, and the working folder."""

    def __init__(self, store: TrackingStore, folder: Path, ids: dict[str, str]) -> None:
        self.store, self.folder, self.ids = store, folder, ids

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


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> World:
    folder = tmp_path_factory.mktemp("world")
    shutil.copy(tables, folder / "mlflow.db")
    store = TrackingStore.connect(f"sqlite:///{folder}/mlflow.db")
    made = World(store, folder, {})
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
    add("stopped-early", "KILLED", config="b", reason="stopped early")
    launch("living-launch", "RUNNING", driver=LIVING)
    add("failed-of-a-living-launch", "FAILED", below="living-launch")
    add("held-by-a-living-driver", "FAILED")
    add("not-wholly-sent", "FAILED")
    for name in ("champion", "seed-of-the-champion", "linked", "reproduced"):
        add(name, **({"group_hash": "g", "code_digest": "d"} if "champion" in name else {}))
    store.client.create_registered_model("mgmrn-TINY")
    store.client.create_model_version("mgmrn-TINY", folder.as_uri(), ids["champion"])
    store.client.set_registered_model_alias("mgmrn-TINY", "champion", "1")
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
    launch("launch-of-runs-elsewhere")
    launch("new-launch")
    for config in ("a", "b", "cell", "champion", "seed-of-the-champion", "linked", "reproduced"):
        add("new" if config == "a" else f"new-{config}", below="new-launch", config=config)
    store.client.delete_run(add("deleted"))
    for name in ("failed", "cut", "champion", "trial", "new", "deleted"):
        made.keep(name)
    made.keep("not-wholly-sent").append(3, {"val/ausuc": 0.5})
    made.keep("held-by-a-living-driver")
    made.claim("held-by-a-living-driver")
    return made


@pytest.fixture
def world(first: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy of the first world, as the working folder."""
    shutil.copytree(first.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return World(TrackingStore.connect(f"sqlite:///{tmp_path}/mlflow.db"), tmp_path, dict(first.ids))


@pytest.fixture
def ask(tmp_path: Path, asked: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Runs `prune --json`; returns what it prints, with the names of the leftovers by their kinds."""

    def run(*words: str) -> dict[str, Any]:
        places = ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--storage", "runs", "--data-root", "data")
        code, answer, _ = asked("prune", *words, *places)
        assert code == 0, answer
        named = [(one["kind"], one["name"]) for one in answer["leftovers"]]
        return answer | {"names": {kind: {name for of, name in named if of == kind} for kind, _ in named}}

    return run


def test_what_is_named_goes_and_nothing_else(world: World, ask: Callable[..., dict[str, Any]]) -> None:
    runs, files = world.active, world.files
    named = ask()
    assert named["names"] == GOING
    assert (world.active, world.files) == (runs, files), "nothing changes without --yes"
    sizes = {one["name"]: one["bytes"] for one in named["leftovers"]}
    assert sizes["failed final"] > 7 and sizes["grid.html"] == 32 and sum(sizes.values()) == named["bytes"]
    for kind in ("reports", "failed"):
        assert ask("--only", kind, "--yes")["names"] == {kind: GOING[kind]}
    assert ask("--yes")["names"] == {kind: GOING[kind] for kind in ("superseded", "checkpoints")}
    assert runs - world.active == RUNS
    assert world.files == {path for path in files if not path.startswith(PATHS)}
    assert {path for one in named["leftovers"] for path in one["paths"]} == set(PATHS)
    assert world.store.state_of(world.ids["failed"]) == "deleted", "MLflow can restore it until its garbage collection"
    assert world.store.client.search_logged_models([world.store.experiment_id]) == []
    again = ask("--yes")
    assert again["leftovers"] == [] and again["gc"].startswith(f"mlflow gc --backend-store-uri {world.store.uri}")


def test_an_interrupted_removal_is_completed_by_another_one(
    world: World, ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal of each file, and of each run in the store, is interrupted once."""
    files, interrupted = world.files, set[str]()
    for owner, step in ((StoragePath, "delete"), (TrackingStore, "delete_run")):

        def stop(target: Any, *given: Any, whole: Any = getattr(owner, step), **more: Any) -> Any:
            key = given[0].run_id if given else str(target)
            if key not in interrupted and "claims" not in key:
                interrupted.add(key)
                raise ZeroDivisionError
            return whole(target, *given, **more)

        monkeypatch.setattr(owner, step, stop)
    for _ in range(len(RUNS) + 10):
        with pytest.raises(ZeroDivisionError):
            ask("--yes")
    ask("--yes")
    assert not world.active & RUNS
    assert world.files == {path for path in files if not path.startswith(PATHS)}


def test_what_has_changed_since_it_was_found_stays(world: World) -> None:
    where = Where(world.store.uri, world.folder / "data", StoragePath.parse(world.folder / "runs"))
    found = {one.name: one for one in find_leftovers(world.store, where, ())}
    world.store.reopen(world.store.get(world.ids["failed"]))
    world.claim("new")
    for name, sentence in (("failed final", "has changed since it was found"), ("new final", "is being run by")):
        with pytest.raises(ResourceError, match=sentence):
            remove(world.store, found[name])
        assert all(path.exists() for path in found[name].paths)
    assert "failed" in world.active


def test_caches_of_named_experiments_stay_and_all_while_a_driver_lives(
    store: TrackingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., dict[str, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    root, data = tmp_path / ".mgmrn" / "cache", write_benchmark(tmp_path / "data")
    made: list[set[str]] = []
    for size in (32, 48):
        Path(f"{size}.yaml").write_text("extends: [experiment/synthetic]\n" + SMALL % size)
        build_caches(load_experiment(f"{size}.yaml").config, data, root, lambda message: None)
        made.append({path.name for path in root.glob("[0-9a-f]*-c4*")}.difference(*made))
        assert len(made[-1]) == 2, "trainable images and test images"
    assert ask()["names"] == {"caches": made[0] | made[1]}
    torn = root / min(made[0])
    torn.rename(root / f".{torn.name}.damaged-0123456789abcdef")
    assert ask("--experiment", "48.yaml", "--yes")["names"] == {"caches": made[0]}
    assert {path.name for path in root.glob("[0-9a-f]*-*")} == made[1] and not [*root.glob(f"*{torn.name}*")]
    World(store, tmp_path, {}).add("living", "RUNNING", driver=LIVING)
    assert ask()["names"] == {}
