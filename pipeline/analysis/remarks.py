"""What is to be said of an entry's seeds: those without a score, and those whose score is not of the code and data at hand."""

from __future__ import annotations

from typing import get_args

from pipeline.analysis.comparison import Entry, score_of
from pipeline.analysis.scores import CellState, ScoreCard

NO_CELL = "no cell of the grid"
UNSCORED = "without score"


def states_of(entry: Entry, metric: str) -> str:
    """How many seeds are not simply cached with a score, like `1 failed, 2 missing`; empty where all are."""
    conditions = [_condition(card, metric) for card in entry.cards]
    counts = {condition: conditions.count(condition) for condition in (*get_args(CellState), UNSCORED)}
    del counts["cached"]
    shown = [f"{count} {condition}" for condition, count in counts.items() if count]
    return ", ".join(shown) if entry.cards else NO_CELL


def reasons_of(entry: Entry, metric: str) -> str:
    """The same seeds with their reasons, like `1 failed (seed 2: out of memory), 1 missing (seed 3)`."""
    if not entry.cards:
        return NO_CELL
    groups: dict[str, dict[str, list[int]]] = {}
    for card in entry.cards:
        reason = " ".join(card.reason.split())
        groups.setdefault(_condition(card, metric), {}).setdefault(reason, []).append(card.seed)
    groups.pop("cached", None)
    shown = []
    for condition in sorted(groups, key=(*get_args(CellState), UNSCORED).index):
        by_reason = groups[condition]
        count = sum(len(seeds) for seeds in by_reason.values())
        shown.append(f"{count} {condition} ({'; '.join(_seeds(*one) for one in by_reason.items())})")
    return ", ".join(shown)


def _condition(card: ScoreCard, metric: str) -> str:
    return UNSCORED if card.state == "cached" and score_of(card, metric) is None else card.state


def _seeds(reason: str, seeds: list[int]) -> str:
    which = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return f"{which}: {reason}" if reason else which
