"""The whole protocol through the command line: its output, its tracked runs, the cached answer, and a reproduction."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.config.compose import load_experiment, values_of
from pipeline.config.yaml_tree import yaml_value
from pipeline.tracking.environment import ENVIRONMENT_TAG
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


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Protocol]:
    with a_place(tmp_path_factory.mktemp("protocol")) as place:
        arguments = ("train", *write_small(place.folder), "--cpus-per-worker", "1", "--json")
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
    tune, final = result["runs"]
    assert final["gamma"] == tune["gamma"] == protocol.runs["final"].data.metrics["test/gamma"]
    calibrations = {run.data.tags["mgmrn.calibration"] for run in protocol.runs.values()}
    assert len(calibrations) == 1, "final takes what tune decided"


@pytest.mark.parametrize("split", ["tune", "final"])
def test_a_run_is_tracked_with_tags_params_artifacts_and_data_set(protocol: Protocol, split: str) -> None:
    run, answer = protocol.runs[split], protocol.answer.json
    tags = run.data.tags
    assert (run.info.status, tags["mlflow.parentRunId"]) == ("FINISHED", answer["parent_run_id"])
    expected = {"kind": "run", "study": "small", "variant": "mgmrn", "benchmark": "TINY", "seed": "0", "split": split}
    expected |= {"world_size": "1", "attempt": "1", "stop_reason": "finished", "gpu_seconds": "0.0"}
    expected["config_hash"] = answer["runs"][0]["config_hash"]
    assert {key: tags.get(f"mgmrn.{key}") for key in expected} == expected
    assert (Path(tags["mgmrn.checkpoint_uri"]) / "state.pt").is_file()
    assert {"mgmrn.group_hash", "mgmrn.data_digest", "mgmrn.code_sha", "mgmrn.code_dirty"} <= set(tags)
    config = load_experiment(str(protocol.place.folder / "small.yaml"), []).config
    names = {name: run.data.tags[f"mgmrn.{name}"] for name in ("variant", "benchmark", "split")}
    assert run.data.params == names | {path: yaml_value(value) for path, value in values_of(config).items()}
    files = files_of(protocol.client, run)
    launch = protocol.client.get_run(answer["parent_run_id"])
    assert f"{tags[ENVIRONMENT_TAG]}/environment.json" in files_of(protocol.client, launch)
    assert {
        "config/resolved.yaml",
        "eval/curve.csv",
        "eval/confusion.csv",
        "eval/per_class.csv",
        "eval/predictions.csv",
    } <= files
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "TINY"
    assert tags["mgmrn.data_digest"].startswith(data.dataset.digest)
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": split}


def test_tune_is_evaluated_every_epoch_and_final_once_at_its_end_with_the_printed_figures(protocol: Protocol) -> None:
    tune, final = (steps_of(protocol.client, protocol.runs[split]) for split in ("tune", "final"))
    assert not any(key.startswith("test/") for key in tune) and not any(key.startswith("val/") for key in final)
    for key in ("train/total", "train/lr", "perf/images_per_s", "perf/step_ms", "perf/peak_mem_mb", "val/ausuc"):
        assert tune[key] == list(range(1, EPOCHS + 1)), key
    last = final["train/total"][-1]
    assert final["train/total"] == list(range(1, last + 1))
    assert {key: final[f"test/{key}"] for key in FIGURES} == {key: [last] for key in FIGURES}
    printed = {key: value for key, value in protocol.answer.json["runs"][1]["metrics"].items() if "test/" in key}
    assert {key: protocol.runs["final"].data.metrics[key] for key in printed} == printed


def test_a_run_that_is_run_again_comes_to_the_same_bits_and_stands_apart(protocol: Protocol) -> None:
    place, final = protocol.place, protocol.answer.json["runs"][1]
    answer = place.run("reproduce", final["name"], "--data-root", "data", "--json")
    assert answer.code == 0, answer.err
    said = answer.json
    assert (said["verdict"], said["comparison"], said["remarks"]) == ("equal", "bitwise", [])
    assert said["run_id"] == final["run_id"]
    assert {one["verdict"] for one in said["metrics"]} == {"equal"}
    figures = {one["metric"]: one["now"] for one in said["metrics"]}
    assert figures["test/gzsl_h"] == final["metrics"]["test/gzsl_h"]
    assert any(name.startswith("train/") for name in figures)
    again = protocol.client.get_run(said["reproduction_run_id"])
    assert again.info.status == "FINISHED"
    assert again.info.run_id not in {run.info.run_id for run in runs_of(protocol.client)}
    tags = {key: again.data.tags[f"mgmrn.{key}"] for key in ("kind", "reproduces", "reproduction")}
    assert tags == {"kind": "reproduction", "reproduces": said["run_id"], "reproduction": "equal"}
    assert list(place.folder.glob(".mgmrn/runs/*.final/checkpoint_*")), "the original's checkpoints are left alone"
    assert protocol.client.get_run(said["run_id"]).info.status == "FINISHED"
