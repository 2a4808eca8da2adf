"""The cells of a grid on the data at hand: each a `tune` run, and a `final` run with what that decides."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from mgmrn.config import BenchmarkConfig, ImageConfig
from mgmrn.data.splits import FinalData, TuneData, final_data, tune_data
from mgmrn.data.xlsa17 import load_benchmark
from mgmrn.errors import UserError
from pipeline.ablation.config import AblationConfig
from pipeline.ablation.grid import Grid
from pipeline.config.compose import resolve_weights
from pipeline.train.cell import Cell, make_cell
from pipeline.train.spec import Calibration


@dataclass(frozen=True)
class GridCell:
    """A variant on a benchmark with a seed, whose data are at hand."""

    benchmark: str
    """As shown, like `CUB` or `CUB-standin`."""
    variant: str
    seed: int
    tune: Cell
    final_data: FinalData | None
    """None where the grid is scored on the `tune` split."""

    def final(self, calibration: Calibration) -> Cell:
        """The sealed run, with what the tune run decided."""
        assert self.final_data is not None
        return make_cell(self.tune.composed, self.seed, self.final_data, calibration, self.variant)


@dataclass(frozen=True)
class MissingCell:
    """A cell whose benchmark is not at hand."""

    benchmark: str
    variant: str
    seed: int
    reason: str


def make_cells(grid: Grid, data_root: Path) -> list[GridCell | MissingCell]:
    """All cells, benchmark by benchmark within a variant, seed by seed within a benchmark.

    Args:
        grid: variants, benchmarks, seeds.
        data_root: folder of the benchmarks, absolute.

    Raises:
        UserError: for a config whose weights are not there.
    """
    config = grid.file.config
    data: dict[BenchmarkConfig, _Data | str] = {}
    cells: list[GridCell | MissingCell] = []
    for variant in grid.variants:
        for name in grid.benchmarks:
            composed = variant.configs[name]
            # How pictures become tensors is no matter of lists and attributes.
            described = composed.config.benchmark.model_copy(update={"images": ImageConfig()})
            if described not in data:
                data[described] = _load(config, described, data_root)
            found = data[described]
            for seed in config.seeds:
                if isinstance(found, str):
                    cells.append(MissingCell(composed.config.benchmark.name, variant.name, seed, found))
                    continue
                tune, final = found
                resolved = replace(composed, config=resolve_weights(composed.config, data_root))
                cell = make_cell(resolved, seed, tune, None, variant.name)
                cells.append(GridCell(cell.benchmark, variant.name, seed, cell, final))
    return cells


_Data = tuple[TuneData, FinalData | None]


def _load(config: AblationConfig, benchmark: BenchmarkConfig, data_root: Path) -> _Data | str:
    """Both splits from one reading, or why there is none."""
    try:
        read = load_benchmark(data_root, benchmark)
        return tune_data(read, benchmark), final_data(read) if config.split == "protocol" else None
    except UserError as error:
        return str(error)
