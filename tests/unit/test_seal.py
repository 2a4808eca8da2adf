"""Seal of the test sets: in a sealed process every way of this project to them raises or comes back empty."""

import ast
import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pipeline
from mgmrn.checkpoint import TrainedModel, export_model
from mgmrn.data.seal import SealedError, check_open, is_sealed, sealed
from mgmrn.data.splits import FinalData, TuneData, load_final, load_tune
from mgmrn.data.xlsa17 import load_benchmark, numbered_attributes
from mgmrn.model.backbone import build_backbone
from mgmrn.model.network import ImageModel, build_head, levels_of
from mgmrn.protocol import evaluate_split
from pipeline.config.compose import ComposedConfig
from pipeline.storage import StoragePath
from pipeline.train.cell import make_cell
from pipeline.train.spec import EVALUATION_FILE
from tests.sealed import ATTEMPTS, CONFIG, TINY, Secrets
from tests.tiny import write_benchmark

REPOSITORY = Path(pipeline.__file__).parents[1]


def export(path: Path, data: TuneData | FinalData) -> None:
    backbone = build_backbone(CONFIG.model.backbone, levels_of(CONFIG.model))
    network = ImageModel(backbone, build_head(CONFIG.model, backbone.channels, torch.from_numpy(data.word_vectors)))
    classes, attributes = data.classes, torch.from_numpy(data.classes.attributes)
    names = numbered_attributes(attributes.shape[1])
    export_model(path, TrainedModel(network, CONFIG, classes.names, attributes, classes.seen, 0.0, names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and files that unsealed runs have left where a trial could look."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "data").mkdir()
    root = write_benchmark(folder / "data")
    (folder / "cub").mkdir()
    write_benchmark(folder / "cub", "CUB", pictures=False)
    rng = np.random.default_rng(0)
    for data in (load_tune(root, TINY), load_final(root, TINY)):
        scores = rng.normal(size=(len(data.seen) + len(data.unseen), len(data.classes.names))).astype(np.float32)
        (folder / data.split).mkdir()
        evaluate_split(data, scores, 0.0).save(folder / data.split / EVALUATION_FILE)
        (folder / f"{data.split}.pickle").write_bytes(pickle.dumps(data))
    export(folder / "final" / "model.pt", data)
    spec = make_cell(ComposedConfig("x", CONFIG, {}), 0, data, None, "x").spec(
        root, StoragePath.parse(folder / "runs"), 1
    )
    (folder / "final.json").write_text(spec.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def met(folder: Path) -> dict[str, dict[str, Any]]:
    """Result of each attempt of a sealed process; an attempt that starts Ray finds no cluster."""
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.sealed", str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    answer: dict[str, dict[str, Any]] = json.loads(run.stdout)
    return answer


@pytest.mark.ray
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_no_way_leads_to_the_test_sets(met: dict[str, dict[str, Any]], attempt: str) -> None:
    assert met[attempt]["found"] == []
    assert met[attempt]["raised"] == ATTEMPTS[attempt][1], met[attempt]
    if met[attempt]["raised"] == "SealedError":
        assert "out of reach" in met[attempt]["message"]


@pytest.mark.ray
def test_tuning_data_are_the_same_with_and_without_a_seal(met: dict[str, dict[str, Any]], folder: Path) -> None:
    before, sealed = (pickle.loads((folder / f"{name}.pickle").read_bytes()) for name in ("tune", "sealed_tune"))
    assert isinstance(before, TuneData) and isinstance(sealed, TuneData)
    np.testing.assert_equal(dataclasses.asdict(sealed), dataclasses.asdict(before))
    assert sealed.digest == load_benchmark(folder / "data", TINY).digest


def test_the_same_search_for_secrets_finds_them_where_no_seal_is_closed(folder: Path) -> None:
    """Without this, a search for secrets that looks nowhere would pass too."""
    secrets = Secrets.of(folder / "data")
    root = folder / "data"
    final, benchmark = load_final(root, TINY), load_benchmark(root, TINY)
    for leak in (final, benchmark, [{"x": (lambda: final)}], benchmark.attributes.T, benchmark.labels):
        assert secrets.found_in(leak)
    assert "a test list" in secrets.found_in(benchmark) and "a test image's label" in secrets.found_in(benchmark)
    assert "an unseen class's attributes" in secrets.found_in(final.classes.attributes[:, ::-1][:, ::-1])
    assert "a test image's position" in secrets.found_in(final.unseen)
    assert not secrets.found_in(load_tune(root, TINY))
    assert not issubclass(TuneData, FinalData) and not issubclass(FinalData, TuneData)


def test_this_process_is_open_before_and_after_a_seal_for_a_block() -> None:
    assert not is_sealed()
    check_open("anything")
    assert issubclass(SealedError, RuntimeError)
    with pytest.raises(SealedError), sealed():
        with sealed():
            pass
        assert is_sealed()
        check_open("anything")
    assert not is_sealed()


FORBIDDEN = {"load_final", "final_data", "FinalData", "load_benchmark", "read_mat", "read_lists", "run_experiment"}
FORBIDDEN |= {"SplitData"}


@pytest.mark.parametrize("path", sorted((REPOSITORY / "pipeline" / "search").glob("*.py")), ids=lambda path: path.name)
def test_a_search_names_nothing_that_leads_to_the_test_sets(path: Path) -> None:
    assert FORBIDDEN & set(re.findall(r"\w+", path.read_text())) == set()


@pytest.mark.parametrize(("module", "function"), [("trials/trial", "setup"), ("search/warm", "_warm")])
def test_code_on_the_cluster_closes_the_seal_before_all_else(module: str, function: str) -> None:
    tree = ast.parse((REPOSITORY / "pipeline" / f"{module}.py").read_text())
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    passed_over = ast.Import | ast.ImportFrom | ast.Constant
    first = next(one for one in bodies[-1] if not isinstance(getattr(one, "value", one), passed_over))
    assert ast.unparse(first) == "close_seal()"


def test_a_worker_of_a_tune_run_closes_the_seal_before_it_reads() -> None:
    source = (REPOSITORY / "pipeline" / "train" / "worker.py").read_text()
    run = source[source.index("def _epochs(") :]
    assert run.index('with sealed() if spec.split == "tune" else nullcontext():') < run.index("load(")
