"""A new tracking database appears whole or not at all, whatever happens while its tables are made."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlflow.tracking
import pytest

from pipeline.tracking.store import TrackingStore

CLIENT = mlflow.tracking.MlflowClient


def making(monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]) -> None:
    """Has a function make the tables of the next new database, in place of MLflow, which takes seconds for them."""

    def client(tracking_uri: str) -> object:
        file = Path(tracking_uri.removeprefix("sqlite:///"))
        if not file.exists():
            make(file)
        return CLIENT(tracking_uri=tracking_uri)

    monkeypatch.setattr(mlflow.tracking, "MlflowClient", client)


def test_an_interruption_between_two_tables_leaves_nothing(
    tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_one_table(file: Path) -> None:
        with closing(sqlite3.connect(file)) as database:
            database.execute("create table experiments (experiment_id integer)")
        raise KeyboardInterrupt

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    making(monkeypatch, make_one_table)
    with pytest.raises(KeyboardInterrupt):
        TrackingStore.connect(uri)
    assert not list(tmp_path.iterdir())
    making(monkeypatch, lambda file: shutil.copy(tables, file))
    assert TrackingStore.connect(uri).find_finished("0" * 16, "tune") is None
    assert os.listdir(tmp_path) == ["mlflow.db"]


def test_a_database_that_another_command_made_meanwhile_stays(
    tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    theirs = []

    def make_too_late(file: Path) -> None:
        shutil.copy(tables, tmp_path / "mlflow.db")
        theirs.append(TrackingStore.connect(uri).create_parent("theirs", {}))
        shutil.copy(tables, file)

    making(monkeypatch, make_too_late)
    assert TrackingStore.connect(uri).get(theirs[0]).name == "theirs"
