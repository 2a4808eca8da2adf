"""`localise`: attention on the part is a hit, figures are those of the definitions, and a run has them once."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgmrn.checkpoint import TrainedModel, export_model
from mgmrn.config import BenchmarkConfig, ExperimentConfig
from mgmrn.data.images import prepared
from mgmrn.data.splits import FinalData, load_final
from mgmrn.explanation import CellMap, LevelView, look
from mgmrn.localisation import Box, Cells
from mgmrn.makers.drawing import PART_OF_TRAIT, PARTS, TRAITS, Creature, draw_creature
from mgmrn.makers.synthetic import ATTRIBUTE_NAMES, make_synthetic
from mgmrn.model.network import build_model, summed_directions
from mgmrn.parts import AttributeGroup, read_parts
from pipeline.analysis.runs import LOCALISED
from pipeline.models import localise as module
from pipeline.models.localise import ALL_LEVELS, ALL_PARTS, run_localise
from tests.exported import write_model
from tests.tiny import write_benchmark

NETWORK = {
    **{"kind": "mgmrn", "backbone": {"name": "resnet18", "weights": "none"}, "levels": ("c4", "c5"), "width": 32},
    **{"decoder": {"attention_width": 16}, "refinement": {"topology": "none"}},
}
SIZE = 64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_synthetic(tmp_path_factory.mktemp("localise") / "data", per_class=5, size=32)


@pytest.fixture(scope="module")
def data(root: Path) -> FinalData:
    return load_final(root, BenchmarkConfig(name="SYN"))


@pytest.fixture(scope="module")
def model(data: FinalData) -> TrainedModel:
    """A network with drawn weights for the drawings."""
    images = {"size": SIZE, "resize": "squash"}
    config = ExperimentConfig.model_validate({"benchmark": {"name": "SYN", "images": images}, "model": NETWORK})
    torch.manual_seed(0)
    network = build_model(config.model, torch.from_numpy(data.word_vectors)).eval()
    names = tuple(name.replace(" ", "_") for name in ATTRIBUTE_NAMES)
    classes = data.classes
    return TrainedModel(network, config, classes.names, torch.from_numpy(classes.attributes), classes.seen, 0.0, names)


@pytest.mark.parametrize("right", [True, False])
def test_attention_on_the_part_is_a_hit_and_elsewhere_is_none(right: bool) -> None:
    creature = Creature({trait: names[0] for trait, names in TRAITS.items()})
    drawn = draw_creature(creature, 128, np.random.default_rng(0)).boxes
    boxes: dict[str, Box] = {part: box for part, box in drawn.items() if part != "habitat"}
    named = [(trait, part) for trait, part in PART_OF_TRAIT.items() if part in boxes]
    groups = {AttributeGroup(trait, part, (part,)): row for row, (trait, part) in enumerate(named)}
    attention = torch.zeros(1, len(named), 32, 32)
    for row, (_, part) in enumerate(named):
        left, top, width, bottom = boxes[part]
        # A cell is four pixels of the input; its corners hold no part.
        x, y = (int((left + width) / 8), int((top + bottom) / 8)) if right else (0, 0)
        attention[0, row, y, x] = 1.0
    view = LevelView(torch.zeros(1, len(named)), (CellMap(attention, Cells(32, 2.0, 4.0)),), None, {})
    table = module._means(list(module._measure({"c2": view, "c3": view}, 0, groups, boxes, 128)))
    assert list(table) == ["c2", "c3", ALL_LEVELS]
    for level in table.values():
        assert list(level) == [ALL_PARTS, *sorted({*PARTS} - {"habitat"})]
        assert level[ALL_PARTS]["maps"] == len(TRAITS) - 1
        assert {one["pointing"] for one in level.values()} == {float(right)}
        assert all(0 < one["pcp_chance"] < 0.4 and 0 < one["pointing_chance"] < 0.4 for one in level.values())
        assert right or not any(one["pcp"] for one in level.values())
    left, top, width, bottom = boxes["body"]
    area = (width - left) * (bottom - top) / 128**2
    assert table["c2"]["body"]["pointing_chance"] == pytest.approx(area, rel=0.02) and (
        table["c2"]["body"]["pcp"] == right
    )


def by_definition(model: TrainedModel, data: FinalData) -> dict[tuple[str, str], list[tuple[bool, bool]]]:
    """Whether each map hits, picture by picture and number by number."""
    parts = read_parts(data.unseen, model.attribute_names)
    assert parts is not None
    found = defaultdict(list)
    for row, file in enumerate(data.unseen.files):
        with torch.inference_mode():
            picture = prepared(data.unseen.path(row), model.config.benchmark.images)
            views = look(model.network.head, model.config.model, model.network.backbone(picture[None]), SIZE)
        strengths = summed_directions({level: view.attributes for level, view in views.items()})[0].tolist()
        for group, rows in parts.groups.items():
            attribute = max(rows, key=lambda one: strengths[one])
            maps = {level: view.attention_on_input(0, [attribute], SIZE)[0].numpy() for level, view in views.items()}
            box = [SIZE / 32 * edge for edge in parts.pictures[file][group.part].box(32, 32)]
            for level, attention in {**maps, ALL_LEVELS: sum(maps.values())}.items():
                y, x = np.unravel_index(attention.argmax(), attention.shape)
                inside = box[0] <= x + 0.5 <= box[2] and box[1] <= y + 0.5 <= box[3]
                shared = area = 1.0
                for middle, low, high in ((x + 0.5, box[0], box[2]), (y + 0.5, box[1], box[3])):
                    start = min(max(middle - (high - low) / 2, 0), SIZE - (high - low))
                    shared *= max(0, min(start + high - low, high) - max(start, low))
                    area *= high - low
                found[level, group.part].append((inside, shared / (2 * area - shared) >= 0.5))
    return found


def test_the_figures_of_the_verb_are_those_of_the_definitions(
    root: Path, data: FinalData, model: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    export_model(tmp_path / "model.pt", model)
    code, answer, text = asked("localise", "model.pt", "--data-root", root)
    assert code == 0 and (answer["pictures"], answer["benchmark"], answer["run_id"]) == (50, "SYN", None)
    assert "50 pictures of SYN, test_unseen, in percent" in text
    wanted = by_definition(model, data)
    assert {(level, part) for level, one in answer["figures"].items() for part in {*one} - {ALL_PARTS}} == wanted.keys()
    for (level, part), hits in wanted.items():
        figures = answer["figures"][level][part]
        assert list(figures) == [*LOCALISED, "maps"]
        assert [figures["pointing"], figures["pcp"]] == pytest.approx(np.mean(hits, axis=0), abs=1e-9)
        assert figures["maps"] == len(hits)
    assert answer["figures"][ALL_LEVELS][ALL_PARTS]["maps"] == 50 * 12
    assert asked("localise", "model.pt", "--data-root", root, "--split", "test_seen")[1]["pictures"] == 30
    assert not (tmp_path / ".mgmrn").exists()
    config = model.config.model_copy(update={"cache_features": True})
    export_model(tmp_path / "cached.pt", TrainedModel(**{**vars(model), "config": config}))
    figures = asked("localise", "cached.pt", "--data-root", root)[1]["figures"]
    assert len(list((tmp_path / ".mgmrn" / "cache").glob("*-c[45]"))) == 2, "the maps of all test images"
    # Cached maps have 16 bits: a peak may move where two cells are nearly alike.
    for key in ("pointing", "pcp"):
        changed = figures[ALL_LEVELS][ALL_PARTS][key] - answer["figures"][ALL_LEVELS][ALL_PARTS][key]
        assert abs(changed) <= 0.02
    assert "caching" not in asked("localise", "cached.pt", "--data-root", root)[2]


def test_a_run_has_the_figures_once(
    root: Path, model: TrainedModel, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.create_parent("a run", {})
    monkeypatch.setattr(module, "open_model", lambda name, uri: model)
    for _ in range(2):
        found = run_localise(run_id, "test_unseen", store.uri, root, lambda done, total: None)
    assert found.run_id == run_id
    run = store.get(run_id)
    assert len(run.metrics) == len(LOCALISED) * 3 * 7 and all(
        name.startswith("localise/test_unseen/") for name in run.metrics
    )
    name = "localise/test_unseen/all_levels/all_parts/pointing"
    assert run.metrics[name] == found.figures[ALL_LEVELS][ALL_PARTS]["pointing"]
    assert len(store.client.get_metric_history(run_id, name)) == 1
    module.log_figures(store, run, "test_unseen", {ALL_LEVELS: {ALL_PARTS: dict.fromkeys(LOCALISED, 0.5)}})
    assert store.get(run_id).metrics[name] == 0.5, "figures of other code replace them"


def test_a_benchmark_without_parts_and_a_network_without_attention_are_refused(tmp_path: Path, asked: Any) -> None:
    write_model(tmp_path / "model.pt")
    write_benchmark(tmp_path / "data", "X")
    code, answer, _ = asked("localise", tmp_path / "model.pt", "--data-root", tmp_path / "data")
    assert code == 2 and answer["error"] == "X has no annotated parts that its attributes name"
    assert answer["where"] == str(tmp_path / "data" / "X") and "CUB_200_2011/parts" in answer["hint"]
