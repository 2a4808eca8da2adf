"""Life of a driver: on this host it is seen by its process, elsewhere by its heartbeat."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import driver
from pipeline.driver import Driver, driver_is_dead, driver_tag, heartbeat
from pipeline.storage import StoragePath


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"BEAT_SECONDS": 0.02, "LISTEN_SECONDS": 0.02, "HEARTBEAT_TIMEOUT_S": 0.5, "_heard": {}}
    for name, value in changed.items():
        monkeypatch.setattr(driver, name, value)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Driver]:
    """This process, as a driver on another host would be seen."""
    with heartbeat(StoragePath.parse(tmp_path)):
        here = Driver.here()
        yield Driver("elsewhere", here.pid, here.start, here.beat)


def test_a_tag_is_read_as_it_was_written(elsewhere: Driver) -> None:
    assert Driver.parse(str(elsewhere)) == elsewhere
    assert Driver.parse(driver_tag()) == Driver.here()
    assert Driver.parse("host:17:5.00") == Driver("host", 17, 5.0, None)
    assert Driver.parse("") is None and Driver.parse("a:b:c") is None
    assert not driver_is_dead("")


def test_a_driver_elsewhere_lives_while_it_counts(elsewhere: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not elsewhere.is_dead and not elsewhere.is_this_process
    monkeypatch.setattr(driver, "_stays", lambda beat: pytest.fail("a grid asks often: it is watched once"))
    assert not elsewhere.is_dead


def test_a_driver_elsewhere_is_dead_without_a_heartbeat_in_a_readable_folder(elsewhere: Driver, tmp_path: Path) -> None:
    storage = StoragePath.parse(tmp_path)
    assert Driver("elsewhere", 17, 5.0, storage / "drivers" / "elsewhere-17-5.00").is_dead
    (tmp_path / "secret").write_text("x")
    for beat in (None, StoragePath("/not/mounted/here/drivers/x"), storage / "secret", storage / "missing"):
        assert not Driver("elsewhere", 17, 5.0, beat).is_dead


def test_a_heartbeat_ends_with_its_context_and_leaves_nothing(tmp_path: Path) -> None:
    with heartbeat(StoragePath.parse(tmp_path)):
        (beat,) = (tmp_path / "drivers").iterdir()
        with heartbeat(StoragePath.parse(tmp_path / "other")):
            assert str(Driver.here().beat) == str(beat), "within a heartbeat that one serves"
        assert beat.exists()
    assert not beat.exists()
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_killed_driver_is_dead_by_its_process_and_by_its_silence(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pipeline.driver import heartbeat, driver_tag; from pipeline.storage import StoragePath\n"
        "with heartbeat(StoragePath(sys.argv[1])): print(driver_tag(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Driver.parse(process.stdout.readline().strip())
        assert left is not None and not left.is_dead
        process.kill()
    assert left.is_dead
    assert left.beat is not None and left.beat.exists()
    assert driver_is_dead(str(Driver("elsewhere", os.getpid(), left.start, left.beat)))
