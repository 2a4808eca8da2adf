"""A tracking database is there whole or not at all, however its making was ended."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.tracking.new_database import make_tables
from pipeline.tracking.store import TrackingStore

MAKE = "import sys; from pipeline.tracking.store import TrackingStore; TrackingStore.connect(sys.argv[1])"


def tables_of(file: Path) -> set[str]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        return {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}


@pytest.fixture
def making(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command whose first tables are there, and not the last ones."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, f"sqlite:///{tmp_path}/mlflow.db"], stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while not any(file.stat().st_size for file in tmp_path.iterdir()):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.001)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_command_that_was_ended_while_it_made_the_tables_leaves_none(
    tmp_path: Path, making: subprocess.Popen[bytes], tables: Path, number: signal.Signals
) -> None:
    making.send_signal(number)
    making.wait()
    file = tmp_path / "mlflow.db"
    assert not file.exists()
    assert number == signal.SIGKILL or not list(tmp_path.iterdir())
    store = TrackingStore.connect(f"sqlite:///{file}")
    assert store.find_finished("0" * 16, "tune") is None
    assert tables_of(file) == tables_of(tables)


def test_what_another_command_made_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mlflow.db"

    def make_theirs(engine: object) -> None:
        file.write_bytes(b"theirs")

    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", make_theirs)
    make_tables(file)
    assert file.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["mlflow.db"]
