"""Identity of experiments: golden hashes, which change only when the meaning of a config changes."""

from pathlib import Path

from mgmrn.config import BenchmarkConfig, ExperimentConfig
from pipeline.config.compose import load_experiment
from pipeline.config.identity import REPOSITORY, config_hash, group_hash, science_files

PLAIN = ExperimentConfig(benchmark=BenchmarkConfig(name="CUB"))


def test_golden_hashes() -> None:
    """When this fails, finished runs are no longer found. Where that is meant, write the new hashes here."""
    assert config_hash(PLAIN, "data") == "dcb82d92c5c6fa1e"
    assert group_hash(PLAIN, "data") == "dcb82d92c5c6fa1e"
    assert config_hash(load_experiment("cub-released").config, "data") == "a5c6538bf35c268a"


def test_a_level_of_weight_one_counts_as_without_a_weight() -> None:
    hashes = {
        config_hash(load_experiment("synthetic", [f"loss.level_weights={weights}"]).config, "data")
        for weights in ("{}", "{c2: 1}", "{c2: 1.0, c3: 1}")
    }
    assert hashes == {config_hash(load_experiment("synthetic").config, "data")}


def test_a_weights_file_counts_by_its_content(tmp_path: Path) -> None:
    def hash_with(weights: object) -> str:
        return config_hash(load_experiment("cub", [f"model.backbone.weights={weights}"]).config, "data")

    files = {name: tmp_path / name / "weights.pth" for name in ("a", "b", "c")}
    for name, content in {"a": b"one", "b": b"one", "c": b"two"}.items():
        files[name].parent.mkdir()
        files[name].write_bytes(content)
    assert hash_with(files["a"]) == hash_with(files["b"]) != hash_with(files["c"])
    assert hash_with("none") != hash_with("IMAGENET1K_V1")


def test_the_code_digest_covers_what_figures_depend_on() -> None:
    found = {str(path.relative_to(REPOSITORY)) for path in science_files()}
    assert {"mgmrn/engine.py", "mgmrn/model/regions.py", "mgmrn/data/xlsa17.py", "pipeline/train/worker.py"} <= found
    left_out = {"mgmrn/makers/drawing.py", "mgmrn/data/doctor.py", "mgmrn/explanation.py", "pipeline/cli/app.py"}
    assert not left_out & found
