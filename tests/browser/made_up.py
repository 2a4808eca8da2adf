"""An ablation that nobody ran, for tests of its page."""

from __future__ import annotations

import random
from dataclasses import replace

from pipeline.analysis.comparison import compare
from pipeline.analysis.page.content import (
    ClassChange,
    ClassChanges,
    ConfigChange,
    Curve,
    PageContent,
    VariantConfig,
)
from pipeline.analysis.published import PublishedScore
from pipeline.analysis.scores import FIGURES, ScoreCard

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
"""State and reason of cells by variant, benchmark and seed; `broken` has no score on AWA2 at all."""


def made_up(gains: dict[str, float] | None = None, benchmarks: tuple[str, ...] = BENCHMARKS) -> PageContent:
    """Every part of the page has something; cells fail, are missing and stale where the variants are those of `GAINS`."""
    gains = GAINS if gains is None else gains
    base = next(iter(gains))
    chance = random.Random(0)
    cards = [
        _card(variant, benchmark, seed, gain, chance)
        for variant, gain in gains.items()
        for benchmark in benchmarks
        for seed in range(SEEDS)
    ]
    return PageContent(
        title="refinement",
        question="Does mutual refinement help on unseen classes, and which part of it?",
        command="python -m pipeline report refinement",
        made_at="2026-11-24T22:00:00+00:00",
        commit="093db53",
        standin=False,
        comparisons=tuple(compare(cards, base, metric, "final") for metric in ("ausuc", "gzsl_h", "gzsl_u")),
        curves=tuple(_curve(card) for card in cards if card.has_score),
        classes=tuple(
            ClassChanges(benchmark, variant, _class_changes(gain, chance))
            for variant, gain in gains.items()
            if variant != base
            for benchmark in benchmarks
        ),
        configs=tuple(
            VariantConfig(variant, (ConfigChange("model.levels", "[c4, c5]", f"[{variant}]"),))
            for variant in gains
            if variant != base
        ),
        published=(
            PublishedScore(
                "APN", "NeurIPS 2020", "arXiv 2008.08290", "ResNet-101", "frozen", "CUB", 72.1, None, None, 67.2
            ),
        ),
    )


def many() -> PageContent:
    """Thirty variants with names that only their ends tell apart."""
    chance = random.Random(1)
    return made_up(
        {f"regions_of_{count}_parts_on_{level}": chance.gauss(0, 0.02) for level in ("c4", "c5") for count in range(15)}
    )


def with_scores_in(content: PageContent, state: str, reason: str) -> PageContent:
    """The same cells, none of which has a score."""
    cards = [replace(card, state=state, reason=reason, metrics={}) for card in content.runs]
    comparisons = tuple(compare(cards, one.base, one.metric, one.split) for one in content.comparisons)
    return replace(content, comparisons=comparisons, curves=(), classes=())


def _card(variant: str, benchmark: str, seed: int, gain: float, chance: random.Random) -> ScoreCard:
    state, reason = TROUBLES.get((variant, benchmark, seed), ("cached", ""))
    if (variant, benchmark) == ("broken", "AWA2"):
        state, reason = "missing", "no folder DATA/AWA2"
    run_id = None if state in ("new", "missing") else f"{chance.getrandbits(128):032x}"
    card = ScoreCard(benchmark, variant, seed, state, reason, run_id, "7" if run_id else None)
    if state not in ("cached", "stale"):
        return card
    scores = {metric: 0.5 + gain + 0.01 * seed + chance.gauss(0, 0.003) for metric in FIGURES}
    return replace(card, metrics=scores, seconds=300 + 4000 * abs(gain) + 20 * chance.random())


def _curve(card: ScoreCard) -> Curve:
    bend = 1 + 3 * card.metrics["ausuc"]
    steps = [index / 300 for index in range(301)]
    points = tuple((0.8 * (1 - step**bend), 0.75 * (1 - (1 - step) ** bend)) for step in steps)
    return Curve(card.benchmark, card.variant, card.run_id or "", points)


def _class_changes(gain: float, chance: random.Random) -> tuple[ClassChange, ...]:
    return tuple(
        ClassChange(f"{number:03d}.Long_named_Bird", "seen" if number % 4 else "unseen", chance.gauss(gain, 0.1))
        for number in range(60)
    )
