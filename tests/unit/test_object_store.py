"""An object store as storage: one that refuses or is full is a sentence, one that is away is waited for."""

import threading
import time

import pytest

from mgmrn.errors import ResourceError, UserError
from pipeline import driver, storage
from pipeline.driver import Driver, heartbeat
from pipeline.storage import StorageError, StoragePath, check_writable, explained
from pipeline.train.checkpoints import kept_checkpoints, new_checkpoint
from tests.objects import Endpoint, bucket
from tests.ray.command import wait_until

pytestmark = pytest.mark.cluster

FULL = "the storage folder s3://runs-of-tests/full is full (make room there; the same command goes on from the last checkpoint)"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("s3://KEY:hunter2@bucket/runs", "names no storage"),
        ("s3://bucket/runs?endpoint_override=127.0.0.1", "names no storage"),
        ("https://host/runs", "names no storage"),
        ("s3://", "names no storage"),
        (" ", "names no storage"),
    ],
)
def test_what_is_no_address_of_a_storage(address: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        StoragePath.parse(address)
    assert "hunter2" not in str(caught.value) and "the environment" in caught.value.hint


def test_the_parts_of_an_address() -> None:
    root = StoragePath.parse("gs://bucket/runs/")
    assert str(root / "a" / "b") == "gs://bucket/runs/a/b"
    assert ((root / "a").name, (root / "a").parent, root.absolute(), root.disk) == ("a", root, root, None)


def test_files_appear_whole_and_go(storage: StoragePath) -> None:
    file = storage / "a" / "b.json"
    assert (file.read(), file.exists(), storage.names(), storage.exists()) == (None, False, [], False)
    file.write(b"1")
    file.write(b"22")
    assert (file.read(), storage.names(), file.parent.names()) == (b"22", ["a"], ["b.json"])
    assert file.parent.read() is None and file.parent.exists()
    with file.fetched() as path:
        assert path.read_bytes() == b"22"
    with (storage / "none").fetched() as path:
        assert not path.exists()
    with file.parent.filled() as folder:
        (folder / "c").mkdir()
        (folder / "c" / "d").write_bytes(b"3")
    with file.parent.fetched() as folder:
        assert [one.relative_to(folder).as_posix() for one in sorted(folder.rglob("*"))] == ["c", "c/d"]
    for place in (storage / "a", storage / "a", file):
        place.delete()
    assert not (storage / "a").exists()


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (507, "XMinioStorageFull", "is full"),
        (403, "QuotaExceeded", "is full"),
        (403, "AccessDenied", "cannot be written to: AWS Error ACCESS_DENIED during PutObject operation: no more"),
        (400, "ExpiredToken", "cannot be written to: AWS Error UNKNOWN .* ExpiredToken"),
        (503, "SlowDown", "cannot be written to: AWS Error SLOW_DOWN"),
    ],
)
def test_a_store_that_refuses_is_a_sentence_before_anything_starts(
    endpoint: Endpoint, status: int, code: str, sentence: str
) -> None:
    check_writable(bucket("probed"))
    assert bucket("probed").names() == []
    endpoint.refusal = status, code
    with pytest.raises(StorageError, match=f"s3://runs-of-tests/probed {sentence}") as caught:
        check_writable(bucket("probed"))
    assert isinstance(caught.value, ResourceError) and "hunter2" not in str(caught.value)


def test_a_bucket_that_is_not_there(endpoint: Endpoint) -> None:
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET"):
        check_writable(StoragePath("s3://not-there/runs"))


def test_a_checkpoint_for_which_there_is_no_room_leaves_nothing(endpoint: Endpoint) -> None:
    """The next attempt is whole."""
    run_folder = bucket("full")
    with pytest.raises(StorageError) as caught, explained(run_folder), new_checkpoint(run_folder, 1) as folder:
        (folder / "state.pt").write_bytes(b"1")
        endpoint.refusal = 507, "XMinioStorageFull"
    assert str(caught.value) == FULL
    endpoint.refusal = None
    with new_checkpoint(run_folder, 1) as folder:
        (folder / "state.pt").write_bytes(b"1")
    assert [one.damage() for one in kept_checkpoints(run_folder)] == [None]


def test_what_is_written_while_the_endpoint_is_away_arrives_when_it_is_back(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    file = bucket("away") / "file"
    file.write(b"before")
    endpoint.stop()
    writers = [threading.Thread(target=(bucket("away") / name).write, args=(b"after",)) for name in ("file", "other")]
    for writer in writers:
        writer.start()
    wait_until(lambda: bool(storage._silent_since), "the silence is noticed", 60)
    endpoint.start()
    for writer in writers:
        writer.join(60)
    assert (file.read(), bucket("away").names()) == (b"after", ["file", "other"])
    assert capsys.readouterr().err.count("s3://runs-of-tests does not answer, waiting for it: AWS Error NETWORK_") == 1


@pytest.mark.long
def test_an_endpoint_that_stays_away_ends_the_wait(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "AWAY_SECONDS", 1.0)
    endpoint.stop()
    with (
        pytest.raises(StorageError, match="cannot be written to: AWS Error NETWORK_CONNECTION"),
        explained(bucket("x")),
    ):
        bucket("x").write(b"1")
    endpoint.start()


@pytest.mark.long
def test_a_driver_elsewhere_does_not_die_of_an_endpoint_that_was_away(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is away for longer than a driver may be silent; one that is killed is dead all the same."""
    for name, value in {"BEAT_SECONDS": 0.5, "LISTEN_SECONDS": 0.1, "HEARTBEAT_TIMEOUT_S": 10.0, "_heard": {}}.items():
        monkeypatch.setattr(driver, name, value)
    with heartbeat(bucket("beats")):
        here = Driver.here()
        elsewhere = Driver("elsewhere", here.pid, here.start, here.beat)
        endpoint.stop()
        answers: list[bool] = []
        watch = threading.Thread(target=lambda: answers.append(elsewhere.is_dead))
        watch.start()
        time.sleep(12)
        endpoint.start()
        watch.join(60)
        assert answers == [False]
    monkeypatch.setattr(driver, "HEARTBEAT_TIMEOUT_S", 1.0)
    monkeypatch.setattr(driver, "_heard", {})
    assert here.beat is not None
    here.beat.write(b"7")
    assert elsewhere.is_dead
