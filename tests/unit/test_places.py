"""Paths, addresses and streams that a shell hands over: read in one way, and answered with a sentence where they cannot be used."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import pytest
from sqlalchemy.engine import make_url

from mgmrn.atomic_file import replacing
from pipeline.__main__ import run
from pipeline.databases import database_address, sqlite_file
from pipeline.storage import StorageError, StoragePath, check_writable
from pipeline.tracking.store import TrackingStore
from pipeline.where import Where

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["a b.db", "a%20b.db", "100%.db", "50%zz.db", "é.db", "h#x.db", "a%3Fb%25.db"])
def test_the_file_of_an_address_is_the_one_that_sqlalchemy_opens(name: str) -> None:
    address = database_address(f"sqlite:////folder/{name}", "--tracking-uri")
    assert str(sqlite_file(address)) == make_url(address).database


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert database_address("sqlite:///~/x.db", "") == f"sqlite:///{tmp_path}/x.db"
    _, out, _ = typed("data", "guide", "cub", "--data-root=~/my data")
    assert f"python -m pipeline data verify cub --data-root '{tmp_path}/my data'" in out
    assert f"no tracking database sqlite:///{tmp_path}/x.db" in typed("ui", "--tracking-uri=sqlite:///~/x.db")[2]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///~/y.db")
    assert f"no tracking database sqlite:///{tmp_path}/y.db" in typed("ui")[2]
    TrackingStore.connect("sqlite:///~/made/z.db")
    assert (tmp_path / "made" / "z.db").is_file()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("line", ["predict X.pt a.jpg", "train synthetic --data-root X", "data make synthetic --out X"])
def test_a_name_that_is_too_long(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = typed(*line.replace("X", "a" * 300).split())
    assert code == 2 and err.startswith("error: a file cannot be used: File name too long [") and err.count("\n") == 1


def test_folders_that_cannot_hold_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    for folder, reason in {"/proc/x": "No such file", "file/x": "Not a directory", "loop": "links"}.items():
        with pytest.raises(StorageError, match=reason):
            check_writable(StoragePath(folder))
    assert Where(storage=StoragePath("loop")).absolute().storage == StoragePath(str(tmp_path / "loop"))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_never_replaced_by_one(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(FileExistsError), replacing(tmp_path / "x"):
        pass
    assert not (tmp_path / "x").is_file() and [*tmp_path.iterdir()] == [tmp_path / "x"]


def closed_pipe() -> TextIO:
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w", encoding="utf-8")


@pytest.mark.parametrize(
    ("open_stream", "code", "error"),
    [
        (lambda: io.TextIOWrapper(io.BytesIO(), "ascii"), 0, ""),
        (lambda: io.TextIOWrapper(io.BytesIO(), "latin-1"), 0, ""),
        (lambda: None, 0, ""),
        (closed_pipe, 1, ""),
        (lambda: os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"), 2, "error: a file cannot be used: No space left"),
    ],
)
def test_a_standard_output_that_is_closed_full_or_not_utf8(
    open_stream: Any, code: int, error: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.cli.completion.script", lambda shell: "γ = 0.5 – ±")
    monkeypatch.setattr(sys, "argv", ["pipeline", "completion", "bash"])
    stream = open_stream()
    monkeypatch.setattr(sys, "stdout", stream)
    try:
        found = run()
    except SystemExit as ended:  # Typer's answer to a closed pipe.
        found = ended.code
    assert found == code
    assert capsys.readouterr().err.startswith(error)
    if isinstance(getattr(stream, "buffer", None), io.BytesIO):
        assert stream.buffer.getvalue().startswith(b"\\u03b3 = 0.5 ")


def test_a_missing_package_is_named_with_its_remedy() -> None:
    words = [sys.executable, "-S", "-m", "pipeline", "train", "cub", "--json"]  # -S: without the environment.
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: the package typer is not installed (run make setup in")
    assert '"error": "the package typer is not installed"' in done.stdout
