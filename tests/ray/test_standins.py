"""CUB, SUN and AWA2 with their real splits on drawn pictures: they run, and all that they leave says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.ray.command import Answer, Place
from tests.ray.tracked import children_of, client_of, runs_of

pytestmark = [pytest.mark.ray, pytest.mark.real, pytest.mark.long]

SIZE = 64
SMALL_PICTURES = {
    "benchmark.images.size": SIZE,
    "benchmark.images.resize": "squash",
    "model.backbone.name": "resnet18",
    "model.backbone.weights": "none",
}
SMALL_NETWORK = {
    "model.width": 32,
    "model.granularity.group_norm_groups": 4,
    "model.regions.reduced_width": 16,
    "model.decoder.attention_width": 32,
    "schedule.epochs": 1,
}
# Seen and all classes, attributes.
CLASSES = {"cub": (150, 200, 312), "sun": (645, 717, 102), "awa2": (40, 50, 85)}
FIGURES = {"test/zsl_t1", "test/gzsl_u", "test/gzsl_s", "test/gzsl_h", "test/ausuc"}


def draw(place: Place, data_root: Path, name: str, per_class: int) -> None:
    options = ("--source", str(data_root), "--out", "drawn", "--per-class", str(per_class), "--size", str(SIZE))
    answer = place.run("data", "make", "standin", name, *options)
    assert answer.code == 0, answer.err
    assert "no results" in answer.out


def train(place: Place, experiment: str, values: dict[str, object], *options: str) -> Answer:
    values = {"benchmark.name": f"{experiment.partition('-')[0].upper()}-standin", **values}
    overrides = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    answer = place.run("train", experiment, "--data-root", "drawn", "--json", *overrides, *options)
    assert answer.code == 0, answer.err
    return answer


def assert_labelled(run: Run, name: str) -> None:
    """Name, tags and data set of a run bear the stand-in's name."""
    assert run.info.run_name.startswith(f"{name}-standin.")
    assert run.data.tags["mgmrn.benchmark"] == f"{name.upper()}-standin"
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == f"{name.upper()}-standin"
    assert json.loads(used.dataset.profile)["classes"] == CLASSES[name][1]


def assert_figures_of_the_final_split(answer: Answer, name: str) -> None:
    (final,) = (run for run in answer.json["runs"] if run["split"] == "final")
    assert final["benchmark"] == f"{name.upper()}-standin"
    assert final["metrics"].keys() >= FIGURES
    assert all(0 <= final["metrics"][figure] <= 1 for figure in FIGURES)


def rows_of_the_class_table(client: MlflowClient, run: Run) -> list[str]:
    table = Path(client.download_artifacts(run.info.run_id, "eval/per_class.csv"))
    return [line.split(",")[1] for line in table.read_text().splitlines()[1:]]


def test_awa2_by_the_whole_protocol_with_eszsl_beside_it(place: Place, data_root: Path) -> None:
    draw(place, data_root, "awa2", 4)
    assert_figures_of_the_final_split(train(place, "awa2", SMALL_PICTURES | SMALL_NETWORK), "awa2")
    assert_figures_of_the_final_split(train(place, "awa2-eszsl", SMALL_PICTURES), "awa2")
    client = client_of(place)
    children = children_of(client)
    variants = [(run.data.tags["mgmrn.variant"], run.data.tags["mgmrn.split"]) for run in children]
    assert variants == [("mgmrn", "tune"), ("mgmrn", "final"), ("eszsl", "tune"), ("eszsl", "final")]
    for run in children:
        assert_labelled(run, "awa2")
    launches = [run for run in runs_of(client) if run.data.tags["mgmrn.kind"] == "launch"]
    assert [run.data.tags["mgmrn.benchmark"] for run in launches] == ["AWA2-standin", "AWA2-standin"]
    for run in (children[1], children[3]):
        groups = rows_of_the_class_table(client, run)
        assert (groups.count("seen"), len(groups)) == CLASSES["awa2"][:2]


@pytest.mark.parametrize(("name", "per_class"), [("cub", 2), ("sun", 1)])
def test_cub_and_sun_on_their_final_split(place: Place, data_root: Path, name: str, per_class: int) -> None:
    draw(place, data_root, name, per_class)
    answer = train(place, name, SMALL_PICTURES | SMALL_NETWORK, "--split", "final")
    assert_figures_of_the_final_split(answer, name)
    client = client_of(place)
    (run,) = children_of(client)
    assert_labelled(run, name)
    groups = rows_of_the_class_table(client, run)
    assert (groups.count("seen"), len(groups)) == CLASSES[name][:2]
