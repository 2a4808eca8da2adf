"""`prune`: what it names is what goes, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgmrn.errors import ResourceError
from pipeline.cli.data_verbs import build_caches
from pipeline.config.compose import load_experiment
from pipeline.prune import find_leftovers, remove
from pipeline.storage import StoragePath
from pipeline.tracking.store import TrackingStore
from pipeline.where import Where
from tests.leftovers import GOING, LIVING, PATHS, RUNS, World, make_world
from tests.tiny import write_benchmark

SMALL = (
    "model: {backbone: {name: resnet18, weights: none}, levels: [c4]}\nbenchmark: {name: TINY, images: {size: %s}}\n"
)


@pytest.fixture
def world(store: TrackingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return make_world(store, tmp_path)


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
    World(store, tmp_path).add("living", "RUNNING", driver=LIVING)
    assert ask()["names"] == {}
