"""The whole protocol through the command line: its output, its runs in the tracking store, and that it is not repeated."""

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
KEYS = {"run_id", "name", "benchmark", "variant", "split", "seed", "config_hash", "status", "gamma", "metrics"}


@dataclass(frozen=True)
class Protocol:
    """A finished launch of the small experiment."""

    place: Place
    arguments: tuple[str, ...]
    answer: Answer
    client: MlflowClient
    runs: dict[str, Run]
    """Run of each split."""


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protocol]:
    with a_place(tmp_path_factory.mktemp("protocol")) as place:
        arguments = ("train", *write_small(place.folder), "--json")
        answer = place.run(*arguments)
        assert answer.code == 0, answer.err
        assert not place.processes(), "Ray must end with the command"
        client = client_of(place)
        runs = {run["split"]: client.get_run(run["run_id"]) for run in answer.json["runs"]}
        yield Protocol(place, arguments, answer, client, runs)


def test_one_object_on_standard_output_and_progress_on_standard_error(protocol: Protocol) -> None:
    result = protocol.answer.json
    assert set(result) == {"status", "runs", "parent_run_id", "tracking_uri"}
    assert result["status"] == "finished"
    assert result["tracking_uri"].startswith("sqlite:///")
    assert [run["split"] for run in result["runs"]] == ["tune", "final"]
    for run, prefix, other in zip(result["runs"], ("val", "test"), ("test/", "val/"), strict=True):
        assert set(run) == KEYS
        assert (run["benchmark"], run["variant"], run["seed"], run["status"]) == ("TINY", "mgmrn", 0, "finished")
        assert run["name"] == f"tiny.mgmrn.s0.{run['config_hash'][:8]}"
        assert {f"{prefix}/{figure}" for figure in FIGURES} | {"perf/images_per_s"} <= set(run["metrics"])
        assert all(0 <= run["metrics"][f"{prefix}/{figure}"] <= 1 for figure in FIGURES)
        assert not any(key.startswith(other) for key in run["metrics"])
    assert "epoch 1/2" in protocol.answer.err and "Traceback" not in protocol.answer.err


def test_final_takes_what_tune_decided(protocol: Protocol) -> None:
    tune, final = protocol.answer.json["runs"]
    assert final["gamma"] == tune["gamma"] == protocol.runs["final"].data.metrics["test/gamma"]
    assert len({run.data.tags["mgmrn.calibration"] for run in protocol.runs.values()}) == 1


@pytest.mark.parametrize("split", ["tune", "final"])
def test_a_run_is_tracked_with_tags_params_artifacts_and_data_set(protocol: Protocol, split: str) -> None:
    run = protocol.runs[split]
    tags = run.data.tags
    expected = {
        "kind": "run",
        "study": "small",
        "variant": "mgmrn",
        "benchmark": "TINY",
        "seed": "0",
        "split": split,
        "config_hash": protocol.answer.json["runs"][0]["config_hash"],
        "world_size": "1",
        "attempt": "1",
        "stop_reason": "finished",
        "gpu_seconds": "0.0",
    }
    assert {key: tags.get(f"mgmrn.{key}") for key in expected} == expected
    assert (Path(tags["mgmrn.checkpoint_uri"]) / "state.pt").is_file()
    assert {"mgmrn.group_hash", "mgmrn.data_digest", "mgmrn.code_sha", "mgmrn.code_dirty"} <= set(tags)
    config = load_experiment(str(protocol.place.folder / "small.yaml"), []).config
    assert run.data.params == {path: yaml_value(value) for path, value in values_of(config).items()}
    files = files_of(protocol.client, run)
    assert {"config/resolved.yaml", "env/environment.json"} <= files
    assert {"eval/curve.csv", "eval/confusion.csv", "eval/per_class.csv", "eval/predictions.csv"} <= files
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "TINY"
    assert tags["mgmrn.data_digest"].startswith(data.dataset.digest)
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": split}


def test_one_parent_stands_for_both_runs(protocol: Protocol) -> None:
    assert len(runs_of(protocol.client)) == 3
    parent = protocol.client.get_run(protocol.answer.json["parent_run_id"])
    assert (parent.info.status, parent.data.tags["mgmrn.kind"]) == ("FINISHED", "launch")
    for run in protocol.runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_tune_sees_validation_images_only_and_every_epoch(protocol: Protocol) -> None:
    steps = steps_of(protocol.client, protocol.runs["tune"])
    assert not any(key.startswith("test/") for key in steps)
    for key in ("train/total", "train/lr", "perf/images_per_s", "perf/step_ms", "perf/peak_mem_mb", "val/ausuc"):
        assert steps[key] == list(range(1, EPOCHS + 1)), key


def test_final_is_evaluated_once_at_its_end_with_the_printed_figures(protocol: Protocol) -> None:
    final = protocol.runs["final"]
    steps = steps_of(protocol.client, final)
    assert not any(key.startswith("val/") for key in steps)
    last = steps["train/total"][-1]
    assert steps["train/total"] == list(range(1, last + 1))
    assert {key: steps[f"test/{key}"] for key in FIGURES} == {key: [last] for key in FIGURES}
    printed = {key: value for key, value in protocol.answer.json["runs"][1]["metrics"].items() if "test/" in key}
    assert {key: final.data.metrics[key] for key in printed} == printed


def test_a_finished_config_is_answered_without_starting_ray(protocol: Protocol) -> None:
    sessions = protocol.place.ray_sessions
    assert sessions, "the first launch had its Ray in this folder"
    answer = protocol.place.run(*protocol.arguments)
    assert (answer.code, answer.json["status"]) == (0, "cached")
    assert answer.json["runs"] == [run | {"status": "cached"} for run in protocol.answer.json["runs"]]
    assert protocol.place.ray_sessions == sessions
    assert len(runs_of(protocol.client)) == 3
