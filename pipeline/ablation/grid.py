"""Variants of an ablation, each as a config on each benchmark, and their cells on the data that exist."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Self

from mgmrn.config import BenchmarkConfig, ImageConfig
from mgmrn.data.splits import FinalData, SplitData, TuneData, final_data, tune_data
from mgmrn.data.xlsa17 import load_benchmark
from mgmrn.errors import UserError
from pipeline.ablation.config import AblationConfig, AblationFile, Overrides
from pipeline.config.compose import ComposedConfig, load_experiment, resolve_weights
from pipeline.config.validation import all_at_once
from pipeline.config.yaml_tree import yaml_value
from pipeline.train.cell import Cell, make_cell
from pipeline.train.spec import Calibration

NOT_OVERRIDDEN = {
    "seed": "every cell is run with every seed of `seeds`",
    "benchmark.name": "name data sets under `benchmarks`",
}
"""Path that no override may set → hint."""

NOT_VARIED = dict.fromkeys(
    ("benchmark.tune_seen_fraction", "benchmark.tune_split_seed"),
    "all variants are judged on the same images: set it under `fixed`",
)
"""Path in which no variant may differ → hint."""

Data = tuple[TuneData, FinalData | None]


@dataclass(frozen=True)
class Variant:
    """A named set of overrides, and its config on every benchmark."""

    name: str
    overrides: Overrides
    source: str
    origins: Mapping[str, str]
    """Path of each override → `file:line`."""
    configs: Mapping[str | None, ComposedConfig]
    """Benchmark, or None for the base's own → the config, with its own seed; empty before it is composed."""

    def equals(self, other: Self) -> bool:
        return all(self.configs[name].config == other.configs[name].config for name in self.configs)


@dataclass(frozen=True)
class Grid:
    """Variants × benchmarks × seeds."""

    file: AblationFile
    variants: tuple[Variant, ...]

    @property
    def base(self) -> Variant:
        return self.variants[0]

    @property
    def benchmarks(self) -> tuple[str | None, ...]:
        """Benchmarks as the file names them; None stands for the base experiment's own."""
        return self.file.config.benchmarks or (None,)


def make_grid(file: AblationFile) -> Grid:
    """Compose every variant on every benchmark.

    Raises `UserError` with all that is wrong at once: unknown paths, values outside the schema, a variant that changes nothing, two variants
    with one config or name, two benchmarks with one name.
    """
    fixed = file.config.fixed
    common = Variant("", fixed, file.label, {path: file.place("fixed", path) for path in fixed}, {})
    drafts = list(_drafts(file))
    problems = [*_refused(common, NOT_OVERRIDDEN)]
    problems += [problem for draft in drafts for problem in _refused(draft, NOT_OVERRIDDEN | NOT_VARIED)]
    variants: list[Variant] = []
    for draft in drafts:
        texts = [f"{path}={yaml_value(value)}" for path, value in {**fixed, **draft.overrides}.items()]
        origins = {**common.origins, **draft.origins}
        try:
            configs = {
                name: load_experiment(file.config.base, texts, benchmark=name, origins=origins)
                for name in file.config.benchmarks or (None,)
            }
            variants.append(replace(draft, configs=configs))
        except UserError as error:
            problems.append(error)
    if not problems:
        if file.config.mode == "grid":
            # The combination of settings that change nothing is the base.
            again = next((one for one in variants[1:] if one.equals(variants[0])), None)
            variants = [one for one in variants if one is not again]
            if len(variants) == 1:
                problems.append(UserError("no combination of the factors differs from the base", file.place("factors")))
        problems += _conflicts(variants, file)
    if problems:
        # A mistake in `fixed`, or in a setting of a factor, occurs in many variants.
        raise all_at_once(list({str(problem): problem for problem in problems}.values()), file.label)
    return Grid(file, tuple(variants))


def _drafts(file: AblationFile) -> Iterator[Variant]:
    """Variants before they are composed: the base first, except in a list."""
    config = file.config
    if config.mode != "list":
        yield Variant(config.base_name, {}, file.place("base"), {}, {})
    for name, overrides in config.variants.items():
        origins = {path: file.place("variants", name, path) for path in overrides}
        yield Variant(name, overrides, file.place("variants", name), origins, {})
    if config.mode == "grid":
        factors = [[(factor, setting) for setting in settings] for factor, settings in config.factors.items()]
        for combined in product(*factors):
            values: Overrides = {}
            origins = {}
            for factor, setting in combined:  # Of a path in several of them the last one counts.
                overrides = config.factors[factor][setting]
                values |= overrides
                origins |= {path: file.place("factors", factor, setting, path) for path in overrides}
            yield Variant("-".join(setting for _, setting in combined), values, file.place("factors"), origins, {})


def _refused(draft: Variant, hints: Mapping[str, str]) -> Iterator[UserError]:
    for path, hint in hints.items():
        if path in draft.overrides:
            yield UserError(f"{path} may not be overridden", draft.origins[path], hint)


def _conflicts(variants: Sequence[Variant], file: AblationFile) -> Iterator[UserError]:
    """Errors for variants with one name or config, and for benchmarks with one name."""
    for position, later in enumerate(variants):
        before = variants[:position]
        if later.name in (one.name for one in before):
            yield UserError(f"two variants are called {later.name}", later.source, "rename one, or set base_name")
        earlier = next((one for one in before if one.equals(later)), None)
        if earlier is not None:
            is_base = earlier is variants[0] and file.config.mode != "list"
            what = f"changes nothing: it is {earlier.name}" if is_base else f"has the same config as {earlier.name}"
            hint = "remove it, or change what it overrides"
            yield UserError(f"the variant {later.name} {what}", later.source, hint)
    names = [composed.config.benchmark.name for composed in variants[0].configs.values()]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield UserError(f"two benchmarks are called {name}", file.place("benchmarks"), "name each data set once")


@dataclass(frozen=True)
class GridCell:
    """A variant on a benchmark with a seed: a `tune` run, and a `final` run that follows it."""

    benchmark: str
    """Benchmark as it is shown, like `CUB` or `CUB-standin`."""
    variant: str
    seed: int
    tune: Cell | None = None
    """None where the benchmark was not found, for the reason `missing`."""
    final_data: FinalData | None = None
    """Data of the final run; None where the grid is scored on the `tune` split."""
    missing: str = ""

    @property
    def config_hash(self) -> str | None:
        return self.tune.config_hash if self.tune else None

    @property
    def data(self) -> list[SplitData]:
        """Data of the `tune` run and of the final one, of those that there are; the cell is scored on the last."""
        return [one for one in (self.tune.data if self.tune else None, self.final_data) if one is not None]

    def final(self, calibration: Calibration) -> Cell:
        assert self.tune is not None and self.final_data is not None
        return make_cell(self.tune.composed, self.seed, self.final_data, calibration, self.variant)


def make_cells(grid: Grid, data_root: Path) -> list[GridCell]:
    """All cells, benchmark by benchmark within a variant, seed by seed within a benchmark."""
    data: dict[BenchmarkConfig, Data | str] = {}
    cells = []
    for variant, benchmark in product(grid.variants, grid.benchmarks):
        composed = variant.configs[benchmark]
        # Lists and attributes do not depend on how pictures become tensors.
        described = composed.config.benchmark.model_copy(update={"images": ImageConfig()})
        if described not in data:
            data[described] = _load(grid.file.config, described, data_root)
        found = data[described]
        for seed in grid.file.config.seeds:
            if isinstance(found, str):
                cells.append(GridCell(composed.config.benchmark.name, variant.name, seed, missing=found))
                continue
            tune, final = found
            resolved = replace(composed, config=resolve_weights(composed.config, data_root))
            cell = make_cell(resolved, seed, tune, None, variant.name)
            cells.append(GridCell(cell.benchmark, variant.name, seed, cell, final))
    return cells


def _load(config: AblationConfig, benchmark: BenchmarkConfig, data_root: Path) -> Data | str:
    """Both splits from one reading, or the reason why there are none."""
    try:
        read = load_benchmark(data_root, benchmark)
        return tune_data(read, benchmark), final_data(read) if config.split == "protocol" else None
    except UserError as error:
        return str(error)
