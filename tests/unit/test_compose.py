"""Composition of configs: merging, origins, and every mistake in one report."""

from pathlib import Path

import pytest

from mgmrn.config import ESZSLConfig
from mgmrn.errors import UserError
from pipeline.config.compose import load_benchmark_config, load_experiment, resolve_weights, values_of
from pipeline.config.identity import config_hash


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_own_keys_win_over_parents_and_later_parents_over_earlier_ones(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "benchmark: {name: A, word_vectors: WA}\nloss: {scale: 1, regression: 1}\nseed: 1\n")
    write(tmp_path / "b.yaml", "loss:\n  scale: 2\nseed: 2\n")
    child = write(tmp_path / "c.yaml", "extends: [./a.yaml, ./b.yaml]\nseed: 3\n")
    composed = load_experiment(child, ["loss.label_smoothing=0.1"])
    config = composed.config
    assert (config.benchmark.name, config.benchmark.word_vectors) == ("A", "WA")
    assert (config.loss.scale, config.loss.regression, config.loss.label_smoothing, config.seed) == (2, 1, 0.1, 3)
    origins = {"loss.scale": f"{tmp_path / 'b.yaml'}:2", "seed": f"{child}:2", "optimiser.name": "default"}
    assert (origins | {"loss.label_smoothing": "--set"}).items() <= composed.provenance.items()
    assert composed.provenance.keys() == values_of(config).keys()


def test_exponents_are_numbers_and_kinds_have_a_default_and_keep_common_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "x.yaml", "benchmark: {name: X}\noptimiser: {head_lr: 5e-4}\nsampling: {batch: 8}\n")
    config = load_experiment(path, ["optimiser.weight_decay=1e-5", "optimiser.backbone_lr=+2E-3"]).config
    assert (config.optimiser.head_lr, config.optimiser.weight_decay, config.optimiser.backbone_lr) == (5e-4, 1e-5, 2e-3)
    assert config.sampling.kind == "plain"
    config = load_experiment("cub100", ["model.kind=eszsl"]).config
    assert isinstance(config.model, ESZSLConfig)
    assert config.model.backbone == load_experiment("cub100").config.model.backbone


def test_a_benchmark_is_read_from_its_own_file_or_from_an_experiment(tmp_path: Path) -> None:
    assert load_benchmark_config("cub100").word_vectors == "CUB"
    assert load_benchmark_config(write(tmp_path / "x.yaml", "extends: experiment/sun\n")).name == "SUN"


def test_a_relative_weights_path_is_looked_for_below_the_data_root(tmp_path: Path) -> None:
    config = load_experiment("cub100").config
    weights = tmp_path / config.model.backbone.weights
    with pytest.raises(UserError, match="does not exist"):
        resolve_weights(config, tmp_path)
    weights.parent.mkdir()
    weights.write_bytes(b"")
    resolved = resolve_weights(config, tmp_path)
    assert resolved.model.backbone.weights == str(weights.resolve()) and len(config_hash(resolved, "data")) == 16
    named = load_experiment("cub").config
    assert resolve_weights(named, tmp_path) == named


def test_circles_and_long_rows_of_extended_files_are_refused_and_each_file_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    child = write(tmp_path / "x.yaml", f"extends: ./link/../{tmp_path.name}/x.yaml\n")
    with pytest.raises(UserError, match="extends runs in a circle"):
        load_experiment(child)
    write(tmp_path / "0.yaml", "benchmark: {name: X}\nseed: 7\n")
    for number in range(1, 40):
        write(tmp_path / f"{number}.yaml", f"extends: [./{number - 1}.yaml, ./{number - 1}.yaml]\n")
    assert load_experiment(str(tmp_path / "20.yaml")).config.seed == 7
    with pytest.raises(UserError, match="more than 20 files extend each other"):
        load_experiment(str(tmp_path / "39.yaml"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("seed: 1\n# é\n".encode("latin-1"), r"not UTF-8 text \[.*x.yaml:2\] \(save it as UTF-8\)"),
        ("seed: 1\n".encode("utf-16-le"), "line 1 of the config is not UTF-8 text"),
        (b"# x\n" * 2**17, "the config has 524288 bytes, 262144 are the most"),
        (b"seed: 1\nloss: \0\n", r"line 2 of the config is not UTF-8 text \[.*x.yaml:2\]"),
        (b"loss: " + b"[" * 30000, r"nested more than 20 deep \[.*x.yaml:1\]"),
        (b"loss:\n\tscale: 1\n", r"not valid YAML: found character '\\t' .*x.yaml:2\]"),
        (b"seed: 1\n---\nseed: 2\n", r"not valid YAML: but found another document \[.*x.yaml:2\]"),
        (b'seed: 1\n"": 2\n', r"a field's name must be text \[.*x.yaml:2\]"),
        (b"seed: 1\nloss: [{scale: 1}]\n", r"a list holds .* no mappings \[.*x.yaml:2\]"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load_experiment(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_and_marks_of_a_document_change_nothing(tmp_path: Path, encoding: str) -> None:
    body = "benchmark: {name: X}\nloss: {scale: .5e1}\nseed: 0x10\n"
    text = f"%YAML 1.2\n---\n{body}..." if encoding == "utf-8" else body
    (tmp_path / "x.yaml").write_bytes(text.encode(encoding))
    config = load_experiment(str(tmp_path / "x.yaml")).config
    assert (config.seed, config.loss.scale) == (16, 5)
