"""Mistakes that only a worker or a cluster can find: one sentence, the right exit code, and nothing left behind."""

from __future__ import annotations

import pytest
from PIL import Image

from mgmrn.checkpoint import CHECKPOINT_FILE, load_state, save_atomically
from pipeline.driver import FOLDER as DRIVERS
from pipeline.train.checkpoints import kept_checkpoints, new_checkpoint
from tests.ray.command import Answer, Place
from tests.ray.small import write_small
from tests.ray.tracked import children_of, client_of, runs_of

pytestmark = [pytest.mark.ray, pytest.mark.long]


def assert_refused(place: Place, answer: Answer, code: int, *parts: str) -> None:
    """One sentence on standard error, the same in parts on standard output, no trace in the storage folder."""
    assert answer.code == code, answer.err
    assert answer.json.keys() == {"error", "where", "hint"}
    sentence = answer.err.splitlines()[-1]
    assert answer.err.count("error: ") == 1 and sentence.startswith("error: "), answer.err
    assert "Traceback" not in answer.err
    for part in (*answer.json.values(), *parts):
        assert part in sentence
    assert not place.processes()


def assert_no_files(place: Place) -> None:
    """No checkpoint, spool, temporary file or half a cache.

    A lock is an empty file, which stays: others may wait for it. So does the folder in which drivers count.
    """
    home = place.folder / ".mgmrn"
    assert [
        path for path in home.rglob("*") if path.is_file() and path.stat().st_size and path.name != "mlflow.db"
    ] == []
    assert not list(home.glob("cache/*/"))
    assert {path.name for path in home.glob("runs/*")} <= {DRIVERS}


def statuses(place: Place) -> dict[str, str]:
    """Kind of every tracked run → its status."""
    return {run.data.tags["mgmrn.kind"]: run.info.status for run in runs_of(client_of(place))}


CACHED = ("--set", "cache_features=true", "--set", "model.backbone={trainable: none, batch_norm: frozen}")


def test_a_truncated_picture_among_those_whose_maps_are_cached(place: Place) -> None:
    arguments = write_small(place.folder)
    picture = place.folder / "data" / "TINY" / "images" / "009.Class_0" / "0.png"
    Image.open(picture).save(picture, format="JPEG")
    picture.write_bytes(picture.read_bytes()[:-200])
    answer = place.run("train", *arguments, "--json", *CACHED)
    assert_refused(place, answer, 2, "the picture cannot be decoded")
    assert answer.json["where"] == str(picture)
    assert statuses(place) == {"launch": "FAILED", "run": "FAILED"}
    (run,) = children_of(client_of(place))
    assert run.data.tags["mgmrn.stop_reason"] == "bad-input"
    assert_no_files(place)


def test_a_checkpoint_of_another_run(place: Place) -> None:
    """A run that was cut off finds a foreign checkpoint in its place: it neither goes on from it nor removes it."""
    arguments = ("train", *write_small(place.folder), "--json", "--split", "tune")
    assert place.run(*arguments).code == 0
    (run_folder,) = (place.folder / ".mgmrn" / "runs").glob("*.tune")
    for one in kept_checkpoints(run_folder):
        with new_checkpoint(run_folder, one.epoch) as folder:
            save_atomically(
                {**load_state(one.folder / CHECKPOINT_FILE), "run_identity": "another"}, folder / CHECKPOINT_FILE
            )
    kept = kept_checkpoints(run_folder)
    client = client_of(place)
    (run,) = children_of(client)
    client.set_terminated(run.info.run_id, "KILLED")
    answer = place.run(*arguments)
    assert_refused(place, answer, 2, "the checkpoint belongs to another run (another, wanted ", CHECKPOINT_FILE)
    assert client.get_run(run.info.run_id).info.status == "FAILED"
    assert kept_checkpoints(run_folder) == kept and all(one.damage() is None for one in kept)


def test_a_cluster_that_is_not_there(place: Place) -> None:
    answer = place.run("train", *write_small(place.folder), "--json", "--address", "127.0.0.1:1")
    assert_refused(place, answer, 3, "no Ray cluster could be reached at 127.0.0.1:1")
    assert runs_of(client_of(place)) == []
    assert_no_files(place)
