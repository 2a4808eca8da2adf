"""Ablation files and grids: wrong and equal variants are refused with their line; the others are composed and joined with data."""

from pathlib import Path

import pytest

from mgmrn.errors import UserError
from pipeline.ablation.config import load_ablation, with_benchmarks
from pipeline.ablation.grid import Grid, make_cells, make_grid
from tests.grids import DECIDED, SMOOTH, cells_of, write_data, write_grid

# Of the base, cub: loss.scale 20, loss.regression 0.1, levels c4 and c5.
FACTORS = """\
mode: grid
factors:
  scale:
    s10: {loss.scale: 10}
    s20: {loss.scale: 20}
  regression: {r0: {loss.regression: 0}, r01: {loss.regression: 0.1}}
"""


def made(folder: Path, text: str, base: str = "base: cub\n") -> Grid:
    path = folder / "x.yaml"
    path.write_text(base + text)
    return make_grid(load_ablation(str(path)))


def error_of(folder: Path, text: str, base: str = "base: cub\n") -> UserError:
    with pytest.raises(UserError) as caught:
        made(folder, text, base)
    return caught.value


def variants(*entries: str) -> str:
    return "variants:\n" + "".join(f"  {entry}\n" for entry in entries)


def scales(grid: Grid) -> dict[str, float]:
    return {one.name: one.configs[grid.benchmarks[0]].config.loss.scale for one in grid.variants}


LOW, HIGH = "low: {loss.scale: 10}", "high: {loss.scale: 40}"
SAME_IMAGES = "all variants are judged on the same images: set it under `fixed`"


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (variants(LOW, "x: {loss.scal: 3}"), 4, "unknown field loss.scal", "did you mean loss.scale?"),
        (variants(LOW, "x: {loss.scale: -1}"), 4, "loss.scale must be greater than 0, got -1", ""),
        (variants(LOW, "x: {model.width: 100}"), 4, "model: width 100 must be a multiple of", ""),
        ("fixed:\n  model.width: 64\n  loss.scal: 3\n" + variants(LOW), 4, "unknown field loss.scal", None),
        ("fixed:\n  seed: 3\n" + variants(LOW), 3, "seed may not be overridden", None),
        (variants(LOW, "x: {benchmark.name: SUN}"), 4, "benchmark.name may not be overridden", None),
        (variants(LOW, "x: {benchmark.tune_split_seed: 1}"), 4, "benchmark.tune_split_seed may not be ", SAME_IMAGES),
        (variants(LOW, "x: {loss.scale: 20}"), 4, "the variant x changes nothing: it is base", None),
        (variants(LOW, HIGH, "x: {loss.scale: 10}"), 5, "the variant x has the same config as low", None),
        ("mode: list\n" + variants(LOW, "x: {loss.scale: 10}"), 5, "the variant x has the same config as low", None),
        (variants(LOW, "base: {loss.scale: 40}"), 4, "two variants are called base", "rename one, or set base_name"),
        ("base_name: s10-r0\n" + FACTORS, 5, "two variants are called s10-r0", "rename one, or set base_name"),
        (FACTORS.replace("scale: 20", "scal: 20"), 6, "unknown field loss.scal", "did you mean loss.scale?"),
        ("mode: grid\nfactors: {f: {a: {}}}\n", 3, "no combination of the factors differs from the base", ""),
        ("mode: grid\nfactors: {f: {a: {}, b: {}}}\n", 3, "the variant b changes nothing: it is base", None),
        # What needs no config to be composed.
        (variants(LOW) + "sedes: [1]\n", 4, "unknown field sedes", "did you mean seeds?"),
        (variants(LOW) + "primary: accuracy\n", 4, "primary: 'accuracy' is no figure: name one of zsl_t1, gzsl_u", ""),
        (variants(LOW) + "base_name: the base\n", 4, "base_name: 'the base' cannot name a variant: use letters", ""),
        (variants(LOW, "low+high: {}"), 4, "variants.low+high: 'low+high' cannot name a variant", ""),
        (variants(LOW, "high: {loss: {scale: 40}}"), 4, "variants.high.loss: a mapping overrides nothing", ""),
        (variants(LOW) + "fixed: {loss: {scale: 4}}\n", 4, "fixed.loss: a mapping overrides nothing", ""),
        ("mode: grid\nfactors: {f: {v.a: {}}}\n", 3, "factors.f.v.a: 'v.a' cannot name a variant", ""),
        ("mode: list\n" + variants(LOW), 4, "a list needs two variants to compare", ""),
        ("mode: list\n", 2, "mode list needs variants", ""),
        ("mode: grid\n", 2, "mode grid needs factors", ""),
        (FACTORS.replace("mode: grid\n", "") + variants(LOW), 3, "mode one_at_a_time has variants and no factors", ""),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, line: int, message: str, hint: str | None) -> None:
    error = error_of(tmp_path, text)
    assert error.message.startswith(message)
    assert error.where == f"{tmp_path}/x.yaml:{line}"
    assert hint is None or error.hint == hint


def test_all_mistakes_of_all_variants_are_reported_at_once_and_each_once(tmp_path: Path) -> None:
    text = "fixed:\n  loss.regresion: 1\n" + variants(LOW, "x: {seed: 1}", HIGH)
    lines = error_of(tmp_path, text).message.splitlines()
    assert lines[0] == f"2 errors in {tmp_path}/x.yaml:"
    assert [line.partition("]")[0] for line in lines[1:]] == [
        f"  seed may not be overridden [{tmp_path}/x.yaml:6",
        f"  unknown field loss.regresion [{tmp_path}/x.yaml:3",
    ]
    wrong = variants("a: {loss.scal: 1}", LOW, "b: {loss.scale: -1}", "c: {model.width: 100}")
    twins = variants("a: {loss.scale: 20}", LOW, "b: {loss.scale: 10}", "base: {loss.scale: 30}")
    for text in (wrong, twins):
        message = error_of(tmp_path, text).message
        assert message.startswith("3 errors in")
        assert all(f"x.yaml:{line}]" in message for line in (3, 5, 6))


def test_a_missing_field_has_the_file_for_its_place_and_a_second_benchmark_of_one_name_its_line(tmp_path: Path) -> None:
    error = error_of(tmp_path, "seeds: [0]\n")
    assert (error.message, error.where) == ("mode one_at_a_time needs variants", f"{tmp_path}/x.yaml")
    assert error_of(tmp_path, variants(LOW), base="").message == "base is missing"
    (tmp_path / "mine.yaml").write_text("benchmark: {name: CUB}\n")
    error = error_of(tmp_path, f"benchmarks: [cub, {tmp_path}/mine.yaml]\n" + variants(LOW))
    assert (error.message, error.where) == ("two benchmarks are called CUB", f"{tmp_path}/x.yaml:2")


def test_an_ablation_is_named_with_or_without_its_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_ablation("ablation/components") == load_ablation("components")
    monkeypatch.chdir(tmp_path)
    Path("ablation").mkdir()
    Path("ablation/mine.yaml").write_text("base: cub100\n" + variants(LOW))
    assert load_ablation("ablation/mine.yaml").name == "mine", "a file in a folder of that name"


def test_a_file_extends_another_one_and_its_question_is_the_comment_at_the_head(tmp_path: Path) -> None:
    text = "# no part of it\n" + variants(LOW) + "seeds: [4]\n"
    made(tmp_path, text, base="# Question: which?\n# Cost: none.\nbase: cub\n")
    file = load_ablation(str(tmp_path / "x.yaml"))
    assert (file.name, file.label, file.question) == ("x", f"{tmp_path}/x.yaml", "Question: which?\nCost: none.")
    (tmp_path / "y.yaml").write_text("extends: ./x.yaml\nvariants:\n  high: {loss.scale: 40}\n")
    file = load_ablation(str(tmp_path / "y.yaml"))
    assert (list(file.config.variants), file.config.seeds) == (["low", "high"], (4,))
    assert file.place("variants", "low") == f"{tmp_path}/x.yaml:6"


def test_one_at_a_time_is_the_base_and_each_variant_on_top_and_a_list_is_the_variants_alone(tmp_path: Path) -> None:
    grid = made(tmp_path, "fixed: {model.width: 64, loss.regression: 1}\n" + variants(LOW, "sum: {loss.regression: 2}"))
    assert scales(grid) == {"base": 20, "low": 10, "sum": 20}
    configs = [one.configs[None].config for one in grid.variants]
    assert [config.loss.regression for config in configs] == [1, 1, 2], "a variant wins over what is fixed"
    assert {config.model.width for config in configs if config.model.kind == "mgmrn"} == {64}
    assert grid.base.name == "base" and grid.benchmarks == (None,)
    found = scales(made(tmp_path, "mode: list\n" + variants(HIGH, LOW, "same_as_base: {}")))
    assert list(found.values()) == [40, 10, 20]


def test_combinations_may_be_called_like_the_base_that_they_are_but_not_like_each_other(tmp_path: Path) -> None:
    grid = made(tmp_path, "base_name: s20-r01\n" + FACTORS)
    assert [one.name for one in grid.variants] == ["s20-r01", "s10-r0", "s10-r01", "s20-r0"]
    factors = "{f: {a: {loss.scale: 1}, a-b: {loss.scale: 2}}, g: {c: {model.width: 64}, b-c: {model.width: 32}}}"
    assert error_of(tmp_path, f"mode: grid\nfactors: {factors}\n").message == "two variants are called a-b-c"


def test_a_grid_is_every_combination_without_the_base_and_every_value_has_its_place(tmp_path: Path) -> None:
    grid = made(tmp_path, "fixed: {model.width: 64}\n" + FACTORS)
    assert scales(grid) == {"base": 20, "s10-r0": 10, "s10-r01": 10, "s20-r0": 20}
    assert grid.variants[1].overrides == {"loss.scale": 10, "loss.regression": 0}
    provenance = grid.variants[1].configs[None].provenance
    assert provenance["model.width"] == f"{tmp_path}/x.yaml:2"
    assert provenance["loss.scale"] == f"{tmp_path}/x.yaml:6"
    assert provenance["loss.regression"] == f"{tmp_path}/x.yaml:8"
    assert provenance["model.backbone.name"].startswith("experiment/cub.yaml:")


def test_variants_are_composed_on_every_benchmark_that_is_named(tmp_path: Path) -> None:
    text = "benchmarks: [cub, sun]\nfixed: {benchmark.images.flip: false}\n" + variants(LOW)
    grid = made(tmp_path, text)
    named = {name: composed.config.benchmark.name for name, composed in grid.variants[1].configs.items()}
    assert named == {"cub": "CUB", "sun": "SUN"}
    other = make_grid(with_benchmarks(grid.file, ("awa2",)))
    assert [composed.config.benchmark.name for composed in other.base.configs.values()] == ["AWA2"]
    assert scales(other) == {"base": 20, "low": 10}
    with pytest.raises(UserError, match=r"given twice: cub, cub \[--benchmarks\]"):
        with_benchmarks(grid.file, ("cub", "cub"))


def test_variants_that_are_one_on_some_benchmark_alone_are_two(tmp_path: Path) -> None:
    same = variants("small: {benchmark.images.size: 224}", "same: {benchmark.images.size: 225}")
    grid = made(tmp_path, "benchmarks: [cub, cub100]\n" + same)
    assert grid.base.configs["cub100"].config == grid.variants[2].configs["cub100"].config
    assert grid.base.configs["cub"].config != grid.variants[2].configs["cub"].config


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_data(tmp_path_factory.mktemp("data"))
    (root / "w2v" / "OTHER_attribute.pkl").write_bytes((root / "w2v" / "TINY_attribute.pkl").read_bytes())
    return root


def test_cells_are_variant_by_variant_and_seed_by_seed(tmp_path: Path, data_root: Path) -> None:
    cells = cells_of(write_grid(tmp_path, "seeds: [3, 1]\n" + SMOOTH), data_root)
    assert [(one.benchmark, one.variant, one.tune.config.seed) for one in cells] == [
        ("TINY", variant, seed) for variant in ("base", "smooth") for seed in (3, 1)
    ]
    assert len({one.tune.config_hash for one in cells}) == 4
    final = cells[2].final(DECIDED)
    assert (final.split, final.calibration, final.config_hash) == ("final", DECIDED, cells[2].tune.config_hash)
    assert cells[2].tune.name == final.name and ".smooth.s3." in final.name
    assert {one.final_data for one in cells_of(write_grid(tmp_path, "split: tune\n" + SMOOTH), data_root)} == {None}


def test_a_benchmark_that_is_not_at_hand_makes_missing_cells(tmp_path: Path, data_root: Path) -> None:
    file = write_grid(tmp_path, f"benchmarks: [{tmp_path}/small.yaml, sun]\n" + SMOOTH)
    cells = make_cells(make_grid(file), data_root)
    assert [one.benchmark for one in cells] == ["TINY", "SUN"] * 2
    missing = [one for one in cells if one.tune is None]
    assert [(one.benchmark, one.variant, one.seed) for one in missing] == [("SUN", "base", 0), ("SUN", "smooth", 0)]
    assert all("res101.mat of SUN does not exist" in one.missing for one in missing)
    nowhere = make_cells(make_grid(write_grid(tmp_path)), tmp_path / "nowhere")
    assert all(one.tune is None and "nowhere does not exist" in one.missing for one in nowhere)


def test_cells_share_data_unless_their_word_vectors_differ(tmp_path: Path, data_root: Path) -> None:
    large = "  large: {benchmark.images.size: 64}\n"
    text = f"variants:\n{large}  other: {{benchmark.word_vectors: OTHER}}\n  none: {{benchmark.word_vectors: NONE}}\n"
    base, large_cell, other, none = make_cells(make_grid(write_grid(tmp_path, text)), data_root)
    assert base.tune and large_cell.tune and other.tune
    assert base.tune.data is large_cell.tune.data and base.tune.config_hash != large_cell.tune.config_hash
    assert base.tune.data is not other.tune.data
    assert none.tune is None and "NONE_attribute.pkl" in none.missing
