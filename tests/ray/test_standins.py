"""CUB, SUN and AWA2 with their real splits on drawn pictures: they run, and all that they leave bears the stand-in's name."""

import json
from pathlib import Path

import pytest

from pipeline.tracking.store import TrackingStore
from tests.ray.command import Place
from tests.ray.tracked import children_of, client_of, runs_of

pytestmark = [pytest.mark.ray, pytest.mark.real, pytest.mark.long]

PICTURES = {
    "benchmark.images.size": 64,
    "benchmark.images.resize": "squash",
    "model.backbone.name": "resnet18",
    "model.backbone.weights": "none",
}
NETWORK = {
    "model.width": 32,
    "model.granularity.group_norm_groups": 4,
    "model.regions.reduced_width": 16,
    "model.decoder.attention_width": 32,
    "schedule.epochs": 1,
}
# Seen and all classes.
CLASSES = {"cub": (150, 200), "sun": (645, 717), "awa2": (40, 50)}
FIGURES = {"test/zsl_t1", "test/gzsl_u", "test/gzsl_s", "test/gzsl_h", "test/ausuc"}


def train(place: Place, experiment: str, values: dict[str, object], *options: str) -> None:
    """Trains on a stand-in, and checks the figures of its final split."""
    benchmark = f"{experiment.partition('-')[0].upper()}-standin"
    values = {"benchmark.name": benchmark, **values}
    overrides = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    answer = place.run("train", experiment, "--data-root", "drawn", "--json", *overrides, *options)
    assert answer.code == 0, answer.err
    (final,) = (run for run in answer.json["runs"] if run["split"] == "final")
    assert final["benchmark"] == benchmark
    assert final["metrics"].keys() >= FIGURES and all(0 <= final["metrics"][figure] <= 1 for figure in FIGURES)


@pytest.mark.parametrize(("name", "per_class"), [("awa2", 4), ("cub", 2), ("sun", 1)])
def test_a_standin_is_drawn_and_trained_on(place: Place, data_root: Path, name: str, per_class: int) -> None:
    """AWA2 by the whole protocol with ESZSL beside it, CUB and SUN on their final split."""
    options = ("--source", str(data_root), "--out", "drawn", "--per-class", str(per_class), "--size", "64")
    drawn = place.run("data", "make", "standin", name, *options)
    assert drawn.code == 0 and "no results" in drawn.out, drawn.err
    client = client_of(place)
    if name == "awa2":
        train(place, name, PICTURES | NETWORK)
        train(place, "awa2-eszsl", PICTURES)
        tags = [run.data.tags for run in children_of(client)]
        variants = [(one["mgmrn.variant"], one["mgmrn.split"]) for one in tags]
        assert variants == [("mgmrn", "tune"), ("mgmrn", "final"), ("eszsl", "tune"), ("eszsl", "final")]
    else:
        train(place, name, PICTURES | NETWORK, "--split", "final")
    standin = f"{name.upper()}-standin"
    assert {run.data.tags["mgmrn.benchmark"] for run in runs_of(client)} == {standin}
    for run in children_of(client):
        assert run.info.run_name.startswith(f"{name}-standin.")
        (used,) = run.inputs.dataset_inputs
        assert used.dataset.name == standin
        assert json.loads(used.dataset.profile)["classes"] == CLASSES[name][1]
        if run.data.tags["mgmrn.split"] == "final":
            table = TrackingStore.open(place.tracking_uri).read_text(run.info.run_id, "eval/per_class.csv")
            groups = [line.split(",")[1] for line in table.splitlines()[1:]]
            assert (groups.count("seen"), len(groups)) == CLASSES[name]
