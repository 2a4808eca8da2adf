"""The page as text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pipeline.analysis.comparison import Comparison, score_of
from pipeline.analysis.page import words
from pipeline.analysis.page.bars import bar_chart
from pipeline.analysis.page.content import ClassChange, ClassChanges, PageContent
from pipeline.analysis.page.costs import cost_chart, costs, is_numbered
from pipeline.analysis.page.curves import curve_panels
from pipeline.analysis.page.environment import page_template
from pipeline.analysis.remarks import reasons_of
from pipeline.analysis.render import published_table
from pipeline.analysis.scores import FIGURES, ScoreCard

HERE = Path(__file__).parent
MOST_CLASSES = 10
"""Classes listed per direction."""
FEW_PANELS = 12
FEW_RUNS = 40
"""Longer lists start folded."""


def render_page(content: PageContent) -> str:
    """One HTML text that loads nothing; the same for the same content."""
    helpers: tuple[Callable[..., object], ...] = (
        words.percent,
        words.points,
        words.probability,
        words.time,
        words.symbol,
        words.css_class,
        reasons_of,
        score_of,
        bar_chart,
    )
    script = (HERE / "sort.js").read_text(encoding="utf-8")
    return page_template(HERE, helpers).render(
        content=content,
        primary=content.primary,
        others=content.comparisons[1:],
        answers=words.answers(content.primary),
        rule=words.rule(content.primary),
        counts=words.counts(content.primary),
        verdicts=words.VERDICTS,
        meanings=words.MEANINGS,
        splits=words.SPLITS,
        states=words.STATES,
        figures=FIGURES,
        curves=_curves(content),
        few_panels=FEW_PANELS,
        costs=_costs(content.primary),
        numbered=is_numbered(content.primary),
        classes=_classes(content),
        run_link=lambda card: _run_link(content.ui, card),
        published=published_table(content.published),
        few_runs=len(content.runs) <= FEW_RUNS,
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=_script_hash(script),
    )


@dataclass(frozen=True)
class TopChanges:
    """The classes that gain most and lose most on one benchmark."""

    benchmark: str
    gains: tuple[ClassChange, ...]
    losses: tuple[ClassChange, ...]
    largest: float
    """Of all those differences, without sign."""


def top_changes(changes: ClassChanges) -> TopChanges:
    """Gains and losses, the largest first; classes that stay are in neither."""
    gains = _largest(one for one in changes.classes if one.difference > 0)
    losses = _largest(one for one in changes.classes if one.difference < 0)
    largest = max((abs(one.difference) for one in (*gains, *losses)), default=1.0)
    return TopChanges(changes.benchmark, gains, losses, largest)


def _largest(changes: Iterable[ClassChange]) -> tuple[ClassChange, ...]:
    return tuple(sorted(changes, key=lambda one: (-abs(one.difference), one.name))[:MOST_CLASSES])


def _classes(content: PageContent) -> list[tuple[str, list[TopChanges]]]:
    found = []
    for variant in content.primary.variants:
        changes = [top_changes(one) for one in content.classes if one.variant == variant]
        if changes:
            found.append((variant, changes))
    return found


def _curves(content: PageContent) -> list[tuple[str, list[tuple[str, Markup]]]]:
    panels = ((benchmark, curve_panels(content, benchmark)) for benchmark in content.primary.benchmarks)
    return [(benchmark, found) for benchmark, found in panels if found]


def _costs(comparison: Comparison) -> list[tuple[str, Markup]]:
    found = (costs(comparison, benchmark) for benchmark in comparison.benchmarks)
    return [(one.benchmark, cost_chart(comparison, one)) for one in found if one.points]


def _run_link(ui: str | None, card: ScoreCard) -> str | None:
    """Of web addresses alone, so that no other kind of address becomes something to click."""
    if not ui or not ui.startswith(("http://", "https://")) or not card.run_id or not card.experiment_id:
        return None
    return f"{ui.rstrip('/')}/#/experiments/{card.experiment_id}/runs/{card.run_id}"


def _script_hash(script: str) -> str:
    """What the page's content policy knows its own script by; no other script runs."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
