"""Settings of all tests: shapes in signatures are enforced, real data is next to the checkout."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from pipeline.analysis import paired

if TYPE_CHECKING:
    from pipeline.storage import StoragePath
    from pipeline.tracking.store import TrackingStore
    from pipeline.train.cell import Cell
    from tests.finished_grid import FinishedGrid
    from tests.objects import Endpoint

# Tiny tensors are slower on several threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads that spin while they wait made training nine times slower where processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A shell that runs the tests in the background makes them and their commands ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
install_import_hook("mgmrn", "beartype.beartype")
# Looking for garbage after every 700 new objects, as Python does, takes a tenth of the time of imports and tests.
gc.set_threshold(50_000)
# Intervals of the tests' few seeds are as wide with fewer resamples; `tests/unit/test_comparison.py` tests the real number.
paired.RESAMPLES = 199
# The time of an example depends on the load of the machine.
settings.register_profile("any-machine", deadline=None, max_examples=40)
settings.load_profile("any-machine")


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process; returns exit code, standard output and standard error."""
    from pipeline.cli.app import main

    return lambda *words: (main(words), *capsys.readouterr())


@pytest.fixture
def asked(typed: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """Runs a command with `--json`; returns exit code, the printed object and standard error."""

    def ask(*words: object) -> tuple[int, dict[str, Any], str]:
        code, out, err = typed(*map(str, words), "--json")
        return code, json.loads(out), err

    return ask


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("needs the real-data bundle in ../shared/data")
    return root


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking database without experiments, to be copied: making its tables takes seconds."""
    from mlflow.tracking import MlflowClient

    file = tmp_path_factory.mktemp("tables") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="session")
def finished_grid(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> FinishedGrid:
    """A finished grid; tests that change its runs take a copy."""
    from tests.finished_grid import make_finished_grid

    return make_finished_grid(tmp_path_factory.mktemp("grid"), tables)


@pytest.fixture(scope="session")
def small_cell(tmp_path_factory: pytest.TempPathFactory) -> Cell:
    """The `tune` run of the small experiment, with its data set."""
    from mgmrn.data.splits import load_tune
    from pipeline.config.compose import load_experiment
    from pipeline.train.cell import make_cell
    from tests.ray.small import write_small

    folder = tmp_path_factory.mktemp("small")
    write_small(folder)
    composed = load_experiment(str(folder / "small.yaml"))
    return make_cell(composed, 0, load_tune(folder / "data", composed.config.benchmark), None, "mgmrn")


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 1 MB or of the megabytes that the test names; for tests with the mark `TMPFS`."""
    from tests.tmpfs import small_disk

    with small_disk(tmp_path / "disk", getattr(request, "param", 1)) as folder:
        yield folder


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An S3 endpoint to which the environment leads."""
    from pipeline import storage
    from tests.objects import endpoint

    with endpoint() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        storage._store.cache_clear()
        storage._silent_since.clear()
        yield made


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.cluster)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePath:
    """An empty storage on a disk, and one in a bucket."""
    from pipeline.storage import StoragePath
    from tests.objects import bucket

    if request.param == "disk":
        return StoragePath.parse(tmp_path / "runs")
    request.getfixturevalue("endpoint")
    return bucket(tmp_path.name)


@pytest.fixture
def store(tmp_path: Path, tables: Path) -> TrackingStore:
    """A tracking store without runs, in the test's folder."""
    from pipeline.tracking.store import TrackingStore

    shutil.copy(tables, tmp_path / "mlflow.db")
    return TrackingStore.connect(f"sqlite:///{tmp_path}/mlflow.db")
