"""Whether a driver lives: on this host by its process, elsewhere by its counting."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import driver
from pipeline.driver import Driver, driver_is_dead, driver_tag, heartbeat


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(driver, "LISTEN_SECONDS", 0.02)
    monkeypatch.setattr(driver, "HEARTBEAT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(driver, "_heard", {})


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Driver]:
    """This process, as a driver on another host would be seen."""
    with heartbeat(tmp_path):
        here = Driver.here()
        yield Driver("elsewhere", here.pid, here.start, here.beat)


def silent(beat: Path) -> Driver:
    return Driver("elsewhere", 17, 5.0, beat)


def test_a_name_is_read_as_it_was_written(elsewhere: Driver) -> None:
    assert Driver.parse(str(elsewhere)) == elsewhere
    assert Driver.parse(driver_tag()) == Driver.here()
    assert Driver.parse("host:17:5.00") == Driver("host", 17, 5.0, None)
    assert Driver.parse("") is None and Driver.parse("a:b:c") is None
    assert not driver_is_dead("")


def test_this_process_lives_and_is_known_with_and_without_a_heartbeat(tmp_path: Path) -> None:
    before = Driver.here()
    with heartbeat(tmp_path):
        assert before.is_this_process and Driver.here().is_this_process
        assert not before.is_dead
    assert Driver.parse(driver_tag()) == before


def test_a_driver_elsewhere_that_counts_lives(elsewhere: Driver) -> None:
    assert not elsewhere.is_dead
    assert not elsewhere.is_this_process


def test_a_driver_elsewhere_that_has_fallen_silent_is_dead(tmp_path: Path) -> None:
    """Its host is lost: the file stays as it was."""
    beat = tmp_path / "drivers" / "elsewhere-17-5.00"
    beat.parent.mkdir()
    beat.write_text("41")
    assert driver_is_dead(str(silent(beat)))


def test_a_driver_elsewhere_that_has_ended_is_dead(elsewhere: Driver, tmp_path: Path) -> None:
    gone = tmp_path / "drivers" / "elsewhere-17-5.00"
    assert gone.parent.is_dir()
    assert silent(gone).is_dead


def test_one_that_cannot_be_listened_to_is_taken_to_live(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    for beat in (None, Path("/not/mounted/here/drivers/x"), tmp_path / "secret", tmp_path / "missing"):
        assert not Driver("elsewhere", 17, 5.0, beat).is_dead


def test_many_runs_of_one_driver_are_asked_about_once(elsewhere: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not elsewhere.is_dead
    monkeypatch.setattr(driver, "_count", lambda beat: pytest.fail("listened again"))
    assert not elsewhere.is_dead


def test_a_heartbeat_ends_with_its_context_and_leaves_nothing(tmp_path: Path) -> None:
    with heartbeat(tmp_path):
        (beat,) = (tmp_path / "drivers").iterdir()
        with heartbeat(tmp_path / "other"):
            assert Driver.here().beat == beat, "within a heartbeat that one serves"
        assert beat.exists()
    assert not beat.exists()
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_killed_driver_falls_silent_but_is_not_forgotten(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pipeline.driver import heartbeat, driver_tag\n"
        "with heartbeat(Path(sys.argv[1])): print(driver_tag(), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        left = Driver.parse(process.stdout.readline().strip())
        assert left is not None and not left.is_dead
        process.kill()
    assert left.is_dead, "by its process"
    time.sleep(0.1)
    assert left.beat is not None and left.beat.exists()
    assert Driver("elsewhere", os.getpid(), left.start, left.beat).is_dead, "by its silence"
