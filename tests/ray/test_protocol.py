"""The whole protocol through the command line: what it prints, what it leaves in the tracking store, and that it is not done twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.config.compose import load_experiment, values_of
from pipeline.config.yaml_tree import yaml_value
from tests.ray.command import Answer, Place, a_place
from tests.ray.small import write_small
from tests.ray.tracked import client_of, files_of, runs_of, steps_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.long]

FIGURES = {"zsl_t1", "gzsl_u", "gzsl_s", "gzsl_h", "gzsl_h_oracle", "ausuc"}
EPOCHS = 2


@dataclass(frozen=True)
class Protocol:
    """A finished launch of the small experiment."""

    place: Place
    arguments: tuple[str, ...]
    answer: Answer
    client: MlflowClient

    @property
    def parent(self) -> Run:
        return self.client.get_run(self.answer.json["parent_run_id"])

    def child(self, split: str) -> Run:
        (run,) = (one for one in self.answer.json["runs"] if one["split"] == split)
        return self.client.get_run(run["run_id"])


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protocol]:
    with a_place(tmp_path_factory.mktemp("protocol")) as place:
        arguments = ("train", *write_small(place.folder), "--json")
        answer = place.run(*arguments)
        assert answer.code == 0, answer.err
        assert not place.processes(), "Ray must end with the command"
        yield Protocol(place, arguments, answer, client_of(place))


def test_one_object_on_standard_output(protocol: Protocol) -> None:
    result = protocol.answer.json
    assert set(result) == {"status", "runs", "parent_run_id", "tracking_uri"}
    assert result["status"] == "finished"
    assert result["tracking_uri"].startswith("sqlite:///")
    assert [run["split"] for run in result["runs"]] == ["tune", "final"]
    for run, prefix in zip(result["runs"], ("val", "test"), strict=True):
        assert set(run) == {
            *("run_id", "name", "benchmark", "variant", "split"),
            *("seed", "config_hash", "status", "gamma", "metrics"),
        }
        assert (run["benchmark"], run["variant"], run["seed"], run["status"]) == ("TINY", "mgmrn", 0, "finished")
        assert run["name"] == f"tiny.mgmrn.s0.{run['config_hash'][:8]}"
        assert {f"{prefix}/{figure}" for figure in FIGURES} | {"perf/images_per_s"} <= set(run["metrics"])
        assert all(0 <= run["metrics"][f"{prefix}/{figure}"] <= 1 for figure in FIGURES)
        other = {"val": "test/", "test": "val/"}[prefix]
        assert not any(key.startswith(other) for key in run["metrics"])


def test_progress_goes_to_standard_error(protocol: Protocol) -> None:
    assert "epoch 1/2" in protocol.answer.err
    assert "Traceback" not in protocol.answer.err


def test_final_takes_what_tune_decided(protocol: Protocol) -> None:
    tune, final = protocol.answer.json["runs"]
    assert final["gamma"] == tune["gamma"]
    assert protocol.child("final").data.metrics["test/gamma"] == tune["gamma"]
    calibration = protocol.child("final").data.tags["mgmrn.calibration"]
    assert calibration == protocol.child("tune").data.tags["mgmrn.calibration"]


def test_one_parent_and_two_children(protocol: Protocol) -> None:
    assert len(runs_of(protocol.client)) == 3
    assert protocol.parent.info.status == "FINISHED"
    assert protocol.parent.data.tags["mgmrn.kind"] == "launch"
    for split in ("tune", "final"):
        child = protocol.child(split)
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == protocol.parent.info.run_id


@pytest.mark.parametrize("split", ["tune", "final"])
def test_tags_of_a_run(protocol: Protocol, split: str) -> None:
    tags = protocol.child(split).data.tags
    (run,) = (one for one in protocol.answer.json["runs"] if one["split"] == split)
    expected = {
        "kind": "run",
        "study": "small",
        "variant": "mgmrn",
        "benchmark": "TINY",
        "seed": "0",
        "split": split,
        "config_hash": run["config_hash"],
        "world_size": "1",
        "attempt": "1",
        "stop_reason": "finished",
        "gpu_seconds": "0.0",
    }
    assert {key: tags.get(f"mgmrn.{key}") for key in expected} == expected
    assert (Path(tags["mgmrn.checkpoint_uri"]) / "state.pt").is_file()
    assert {"mgmrn.group_hash", "mgmrn.data_digest", "mgmrn.code_sha", "mgmrn.code_dirty"} <= set(tags)


def test_params_are_the_whole_resolved_config(protocol: Protocol) -> None:
    config = load_experiment(str(protocol.place.folder / "small.yaml"), []).config
    expected = {path: yaml_value(value) for path, value in values_of(config).items()}
    assert protocol.child("tune").data.params == expected
    assert protocol.child("final").data.params == expected


def test_tune_sees_validation_images_only_and_every_epoch(protocol: Protocol) -> None:
    steps = steps_of(protocol.client, protocol.child("tune"))
    assert not any(key.startswith("test/") for key in steps)
    for key in ("train/total", "train/lr", "perf/images_per_s", "perf/step_ms", "perf/peak_mem_mb", "val/ausuc"):
        assert steps[key] == list(range(1, EPOCHS + 1)), key


def test_final_is_evaluated_once_at_its_end(protocol: Protocol) -> None:
    steps = steps_of(protocol.client, protocol.child("final"))
    assert not any(key.startswith("val/") for key in steps)
    last = steps["train/total"][-1]
    assert steps["train/total"] == list(range(1, last + 1))
    assert {key: steps[f"test/{key}"] for key in FIGURES} == {key: [last] for key in FIGURES}


def test_logged_figures_are_the_printed_ones(protocol: Protocol) -> None:
    final = protocol.answer.json["runs"][1]
    logged = protocol.child("final").data.metrics
    printed = {key: value for key, value in final["metrics"].items() if key.startswith("test/")}
    assert {key: logged[key] for key in printed} == printed


@pytest.mark.parametrize("split", ["tune", "final"])
def test_artifacts_and_data_set_of_a_run(protocol: Protocol, split: str) -> None:
    run = protocol.child(split)
    files = files_of(protocol.client, run)
    assert {"config/resolved.yaml", "env/environment.json"} <= files
    assert {"eval/curve.csv", "eval/confusion.csv", "eval/per_class.csv", "eval/predictions.csv"} <= files
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "TINY"
    assert run.data.tags["mgmrn.data_digest"].startswith(data.dataset.digest)
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": split}


def test_a_finished_config_is_answered_without_starting_ray(protocol: Protocol) -> None:
    sessions = protocol.place.ray_sessions
    assert sessions, "the first launch had its Ray in this folder"
    answer = protocol.place.run(*protocol.arguments)
    assert answer.code == 0
    assert answer.json["status"] == "cached"
    first = protocol.answer.json["runs"]
    assert answer.json["runs"] == [run | {"status": "cached"} for run in first]
    assert protocol.place.ray_sessions == sessions
    assert len(runs_of(protocol.client)) == 3
