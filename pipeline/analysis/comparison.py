"""Variants × benchmarks: means over seeds, and differences to the base paired by seed."""

import math
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
import pandas as pd

from pipeline.analysis.paired import LEAST_PAIRS, PairedDifference, Summary, bootstrapped_difference, holm, summarise
from pipeline.analysis.runs import SYMBOLS, CellState, prefix_of, rows_of

VERDICTS = ("better", "worse", "no difference shown", "insufficient seeds", "no score", "base")
SIGNIFICANCE = 0.05
"""P-value, corrected by Holm, below which a variant is called better or worse."""
NO_CELL = "no cell of the grid"
UNSCORED = "without score"
CELL_COLUMNS = ("benchmark", "variant", "seed", "state", "reason", "run_id", "experiment_id", "seconds", "gpu_seconds")
"""Columns of a table of cells, besides one for each key of `SYMBOLS`."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """All variants on all benchmarks by one metric, a key of `SYMBOLS`."""

    metric: str
    split: str
    """`final` or `tune`."""
    base: str
    cells: pd.DataFrame
    """One row per variant, benchmark and seed: `CELL_COLUMNS`, the keys of `SYMBOLS`, `score` by `metric` (NaN: none or not finite)."""
    entries: pd.DataFrame
    """One row per variant and benchmark, variant by variant:

    - `variant`, `benchmark`, `metric`, `split`, `base`;
    - `mean`, `std`, `n`: over the seeds that have a score;
    - `difference`, `low`, `high`, `pairs`, `p`: variant minus base over the `pairs` seeds that both have, its 95 %
      bootstrap interval, and the p-value of a paired t-test; `pairs` is 0 for the base;
    - `p_holm`: p corrected by Holm over all entries of the comparison;
    - `verdict`: one of `VERDICTS`;
    - `run_ids`: of the runs behind the mean, separated by spaces;
    - `states`, `reasons`: the seeds that are not simply finished with a score, like `1 failed, 2 missing` and
      `1 failed (seed 2: out of memory), 2 missing (seeds 3, 4)`.

    Figures are fractions; one that is not known is NaN.
    """

    @property
    def variants(self) -> list[str]:
        return list(self.entries["variant"].unique())

    @property
    def benchmarks(self) -> list[str]:
        return list(self.entries["benchmark"].unique())

    def on(self, benchmark: str) -> pd.DataFrame:
        return self.entries[self.entries["benchmark"] == benchmark]

    def rows(self) -> list[tuple[str, list[Any]]]:
        """Each variant with its entries on the benchmarks, which have the columns as attributes."""
        by_variant = self.entries.groupby("variant", sort=False)
        return [(str(variant), rows_of(found)) for variant, found in by_variant]

    def answer(self, benchmark: str) -> dict[str, list[str]]:
        """Verdict → variants on a benchmark, the base left out."""
        entries = self.on(benchmark)
        others = entries[entries["variant"] != self.base]
        grouped = {str(verdict): list(found) for verdict, found in others.groupby("verdict")["variant"]}
        return {verdict: grouped[verdict] for verdict in VERDICTS if verdict in grouped}


def figures_of(runs: pd.DataFrame, split: str) -> pd.DataFrame:
    """A table of runs with its figures on a split under the keys of `SYMBOLS` (NaN where a run has none)."""
    prefix = prefix_of(split)
    runs = runs.reindex(columns=[*runs.columns, *({prefix + key for key in SYMBOLS} - set(runs.columns))])
    return runs.rename(columns={prefix + key: key for key in SYMBOLS})


def cells_of_runs(runs: pd.DataFrame, split: str) -> pd.DataFrame:
    """Cells of `compare` for finished runs of one split."""
    # MLflow's table comes column by column: pandas warns of more of them until it is copied into one block.
    return figures_of(runs.copy().assign(state="cached", reason=""), split)[[*CELL_COLUMNS, *SYMBOLS]]


def compare(cells: pd.DataFrame, base: str, metric: str, split: str) -> Comparison:
    """Compare all variants among the cells with one of them; variants and benchmarks keep the order of the cells."""
    variants, benchmarks = (list(cells[name].unique()) for name in ("variant", "benchmark"))
    assert base in variants and not cells.duplicated(["variant", "benchmark", "seed"]).any()
    cells = cells.assign(score=cells[metric].where(np.isfinite(cells[metric]))).sort_values("seed")
    places = [(variant, benchmark) for variant in variants for benchmark in benchmarks]
    grouped = {(v, b): cells[(cells["variant"] == v) & (cells["benchmark"] == b)] for v, b in places}
    rows = [
        {"variant": variant, "benchmark": benchmark, "metric": metric, "split": split, "base": base}
        | _entry(grouped[variant, benchmark], None if variant == base else grouped[base, benchmark])
        for variant, benchmark in places
    ]
    entries = pd.DataFrame(rows).astype(dict.fromkeys(("mean", "std", "difference", "low", "high", "p"), float))
    tested = entries["p"].dropna()
    entries["p_holm"] = pd.Series(holm(tested.tolist()), tested.index, dtype=float)
    # Few seeds make a bootstrap interval too narrow, and the t-test assumes a normal distribution: a claim needs both.
    unclear = (entries["pairs"] >= LEAST_PAIRS) & ~(entries["p_holm"] < SIGNIFICANCE)
    entries.loc[unclear, "verdict"] = "no difference shown"
    entries.loc[entries["n"] == 0, "verdict"] = "no score"
    entries.loc[entries["variant"] == base, "verdict"] = "base"
    return Comparison(metric, split, base, pd.concat(grouped.values()), entries)


def _entry(cells: pd.DataFrame, base: pd.DataFrame | None) -> dict[str, Any]:
    """Columns of an entry that follow from its cells and those of the base (None for the base's own entry)."""
    own = cells.dropna(subset="score")
    summary = summarise(own["score"].tolist()) if len(own) else Summary(math.nan, None, 0)
    difference = PairedDifference(math.nan, None, None, None, 0)
    if base is not None:
        both = own.merge(base.dropna(subset="score"), on="seed", suffixes=("", "_base"))
        if len(both):
            difference = bootstrapped_difference(both["score"].tolist(), both["score_base"].tolist())
    return {
        **asdict(summary),
        **{"difference": difference.mean, "low": difference.low, "high": difference.high},
        **{"pairs": difference.n, "p": difference.p, "verdict": difference.verdict},
        "run_ids": " ".join(filter(None, own["run_id"])),
        **_remarks(cells),
    }


def _remarks(cells: pd.DataFrame) -> dict[str, str]:
    if cells.empty:
        return {"states": NO_CELL, "reasons": NO_CELL}
    conditions = cells["state"].mask((cells["state"] == "cached") & cells["score"].isna(), UNSCORED)
    states, reasons = [], []
    for condition in (*(state for state in get_args(CellState) if state != "cached"), UNSCORED):
        found = cells[conditions == condition]
        if found.empty:
            continue
        states.append(f"{len(found)} {condition}")
        by_reason = found["seed"].astype(str).groupby(found["reason"].str.split().str.join(" "), sort=False)
        seeds = []
        for reason, one in by_reason:
            which = f"seed{'s' * (len(one) > 1)} {', '.join(one)}"
            seeds.append(f"{which}: {reason}" if reason else which)
        reasons.append(f"{states[-1]} ({'; '.join(seeds)})")
    return {"states": ", ".join(states), "reasons": ", ".join(reasons)}
