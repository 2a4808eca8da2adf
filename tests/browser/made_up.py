"""Content of a report page with invented figures."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from pipeline.analysis.comparison import CELL_COLUMNS, compare
from pipeline.analysis.page.page import PageContent
from pipeline.analysis.runs import FIGURES, LOCALISED, SYMBOLS

BENCHMARKS = ("CUB", "AWA2")
GAINS = {"full": 0.0, "no_mrm": -0.03, "one_level": -0.06, "wider": 0.03, "broken": 0.0, "deeper": 0.0}
"""By variant; the first is the base."""
SEEDS = 4
TROUBLES = {
    ("no_mrm", "CUB", 1): ("stale", "the code changed since"),
    ("one_level", "AWA2", 0): ("failed", "out of memory at step 120"),
    ("wider", "AWA2", 2): ("new", ""),
    ("wider", "AWA2", 3): ("running", ""),
}
"""State and reason of cells by variant, benchmark and seed; `broken` has no score on AWA2."""


def made_up(gains: dict[str, float] | None = None, benchmarks: tuple[str, ...] = BENCHMARKS) -> PageContent:
    """Content for every part of the page; with the variants of `GAINS`, some cells failed, are missing or stale."""
    gains = GAINS if gains is None else gains
    base = next(iter(gains))
    chance = random.Random(0)
    rows = [
        _cell(variant, benchmark, seed, gain, chance)
        for variant, gain in gains.items()
        for benchmark in benchmarks
        for seed in range(SEEDS)
    ]
    cells = pd.DataFrame(rows, columns=[*CELL_COLUMNS, *SYMBOLS])
    apn = {"method": "APN", "venue": "NeurIPS 2020", "source": "arXiv 2008.08290", "backbone": "ResNet-101"}
    comparisons = tuple(compare(cells, base, metric, "final") for metric in ("ausuc", "gzsl_h", "gzsl_u"))
    measured = [
        {"benchmark": benchmark, "variant": variant, "split": "test_unseen", "level": level, "part": part}
        | {heading: "37.7 ± 1.2 (4)" for heading in LOCALISED.values()}
        for benchmark in benchmarks
        for variant in gains
        for level in ("all levels", "c4", "c5")
        for part in ("all parts", "beak")
    ]
    curves = pd.concat([_curve(row) for row in rows if "ausuc" in row])
    classes = [
        {"benchmark": benchmark, "variant": variant, **change}
        for variant, gain in gains.items()
        if variant != base
        for benchmark in benchmarks
        for change in _class_changes(gain, chance)
    ]
    return PageContent(
        title="refinement",
        question="Does mutual refinement help on unseen classes, and which part of it?",
        command="python -m pipeline report refinement",
        made_at="2026-11-24T22:00:00+00:00",
        commit="093db53",
        comparisons=comparisons,
        curves=curves,
        classes=pd.DataFrame(classes, columns=["benchmark", "variant", "class", "group", "difference"]),
        configs={variant: [("model.levels", "[c4, c5]", f"[{variant}]")] for variant in gains if variant != base},
        localisation=pd.DataFrame(measured),
        published=pd.DataFrame(
            [{**apn, "features": "frozen", "benchmark": "CUB", "t1": 72.1, "u": None, "s": None, "h": 67.2}]
        ).astype({"u": float, "s": float}),
    )


def many() -> PageContent:
    """Thirty variants with names that differ at their ends alone."""
    chance = random.Random(1)
    names = [f"regions_of_{count}_parts_on_{level}" for level in ("c4", "c5") for count in range(15)]
    return made_up({name: chance.gauss(0, 0.02) for name in names})


def with_scores_in(content: PageContent, state: str, reason: str) -> PageContent:
    """The same cells, all without a score."""
    cells = content.primary.cells.assign(state=state, reason=reason, **dict.fromkeys(SYMBOLS, float("nan")))
    comparisons = tuple(compare(cells, one.base, one.metric, one.split) for one in content.comparisons)
    return replace(content, comparisons=comparisons, curves=content.curves[:0], classes=content.classes[:0])


def _cell(variant: str, benchmark: str, seed: int, gain: float, chance: random.Random) -> dict[str, Any]:
    state, reason = TROUBLES.get((variant, benchmark, seed), ("cached", ""))
    if (variant, benchmark) == ("broken", "AWA2"):
        state, reason = "missing", "no folder DATA/AWA2"
    has_run = state not in ("new", "missing")
    cell = {"benchmark": benchmark, "variant": variant, "seed": seed, "state": state, "reason": reason}
    cell |= {"run_id": f"{chance.getrandbits(128):032x}" if has_run else "", "experiment_id": "7" if has_run else ""}
    if state not in ("cached", "stale"):
        return cell
    scores = {metric: 0.5 + gain + 0.01 * seed + chance.gauss(0, 0.003) for metric in FIGURES}
    levels = ("c5",) if variant == "one_level" else ("c4", "c5")
    scores |= {f"ausuc/{level}": scores["ausuc"] - 0.02 * len(levels) * int(level[1]) for level in levels}
    return cell | scores | {"seconds": 300 + 4000 * abs(gain) + 20 * chance.random()}


def _curve(cell: dict[str, Any]) -> pd.DataFrame:
    bend, steps = 1 + 3 * cell["ausuc"], np.linspace(0, 1, 301)
    points = {"seen": 0.8 * (1 - steps**bend), "unseen": 0.75 * (1 - (1 - steps) ** bend)}
    return pd.DataFrame({key: cell[key] for key in ("benchmark", "variant", "run_id")} | points)


def _class_changes(gain: float, chance: random.Random) -> list[dict[str, Any]]:
    groups = {f"{number:03d}.Long_named_Bird": "seen" if number % 4 else "unseen" for number in range(60)}
    return [{"class": name, "group": group, "difference": chance.gauss(gain, 0.1)} for name, group in groups.items()]
