"""The report page of an ablation: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from pipeline.analysis.comparison import SIGNIFICANCE, VERDICTS, Comparison
from pipeline.analysis.page import charts
from pipeline.analysis.paired import LEAST_PAIRS
from pipeline.analysis.runs import FIGURES, CellState, records_of
from pipeline.analysis.tables import published_table

if TYPE_CHECKING:
    import pandas as pd

HERE = Path(__file__).parent
STYLE = HERE / "style.css"
"""Style sheet that all pages share."""
MOST_CLASSES = 10
"""Classes listed per direction."""
FEW_PANELS, FEW_RUNS = 12, 40
"""Lengths above which a list of panels or runs starts folded."""
MEANINGS = {
    "zsl_t1": "accuracy among the unseen classes alone",
    "gzsl_u": "accuracy on unseen classes among all classes",
    "gzsl_s": "accuracy on seen classes among all classes",
    "gzsl_h": "harmonic mean of S and U at the γ chosen on validation classes",
    "gzsl_h_oracle": "harmonic mean at the best γ of the test curve itself: an oracle",
    "ausuc": "area under the seen–unseen curve",
}
SPLITS = {"final": "test classes", "tune": "validation classes, not a test result"}
STATES: Mapping[CellState, str] = {
    "cached": "finished",
    "stale": "stale",
    "running": "running",
    "failed": "failed",
    "new": "not run yet",
    "missing": "benchmark missing",
}


@dataclass(frozen=True)
class PageContent:
    """Everything that the page shows."""

    title: str
    question: str
    """What the ablation asks, as its file says."""
    command: str
    """Command that made the page."""
    made_at: str
    """ISO time."""
    commit: str
    comparisons: tuple[Comparison, ...]
    """One per metric, of the same variants and benchmarks; the first is by the primary metric."""
    curves: pd.DataFrame
    """Points of the seen–unseen curves: `benchmark`, `variant`, `run_id`, `seen`, `unseen`."""
    classes: pd.DataFrame
    """`benchmark`, `variant`, `class`, `group` (`seen` or `unseen`), `difference` (of the class's accuracy to the base,
    mean over the common seeds)."""
    configs: Mapping[str, Sequence[tuple[str, str, str]]]
    """Variant → config values that it changes: path, value of the base, own value."""
    published: pd.DataFrame
    """As `published_on` returns them."""
    ui: str | None = None
    """Address of the MLflow UI that run ids link to."""

    @property
    def primary(self) -> Comparison:
        """Comparison by the primary metric."""
        return self.comparisons[0]


def render_page(content: PageContent) -> str:
    """The page as text, the same for the same content."""
    primary = content.primary
    verdicts = primary.entries["verdict"].value_counts()
    script = (HERE / "sort.js").read_text(encoding="utf-8")
    filters = (charts.percent, charts.points, charts.time, charts.css_class, charts.bar_chart, probability)
    return page_template(HERE / "template.html.j2", filters).render(
        content=content,
        primary=primary,
        others=content.comparisons[1:],
        cells=records_of(primary.cells),
        counts=", ".join(f"{verdicts[one]} {one}" for one in VERDICTS if one in verdicts and one != "base"),
        rule=_rule(primary),
        verdicts=charts.SIGNS,
        meanings=MEANINGS,
        splits=SPLITS,
        states=STATES,
        figures=FIGURES,
        curves=_curves(content),
        few_panels=FEW_PANELS,
        costs=_costs(primary),
        numbered=charts.is_numbered(primary),
        classes=_classes(content),
        run_link=lambda cell: _run_link(content.ui, cell),
        published=published_table(content.published),
        few_runs=FEW_RUNS,
        style=Markup(STYLE.read_text(encoding="utf-8")),
        script=Markup(script),
        # The page's content policy allows the script of this hash alone.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def page_template(path: Path, filters: Iterable[Callable[..., object]]) -> Template:
    """A page's template, with everything escaped and unknown names as errors.

    Args:
        path: of the template.
        filters: functions that the template may call, by their names.
    """
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({function.__name__: function for function in filters})
    return environment.get_template(path.name)


def probability(p: float) -> str:
    """A p-value like `p = 0.031` or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def top_changes(
    classes: pd.DataFrame, variant: str, benchmark: str
) -> dict[Literal["gains", "losses"], list[dict[str, Any]]]:
    """Classes that gain and lose most under a variant, the largest difference first; unchanged classes are left out.

    Args:
        classes: as `PageContent` holds them.
        variant: any but the base.
        benchmark: of the classes.
    """
    here = classes[(classes["variant"] == variant) & (classes["benchmark"] == benchmark)].sort_values("class")
    up, down = here[here["difference"] > 0], here[here["difference"] < 0]
    return {
        "gains": records_of(up.nlargest(MOST_CLASSES, "difference")),
        "losses": records_of(down.nsmallest(MOST_CLASSES, "difference")),
    }


def _rule(comparison: Comparison) -> str:
    return (
        f"A variant is called better or worse from {LEAST_PAIRS} seeds in common with {comparison.base} on, where "
        f"p < {SIGNIFICANCE} in the paired t-test, corrected by Holm (differences: {comparison.entries['p_holm'].count()}), and "
        "the bootstrapped 95 % interval is without zero. No difference shown does not mean that there is none."
    )


def _classes(content: PageContent) -> list[tuple[str, list[tuple[str, dict[Any, Any]]]]]:
    """Variant → benchmark → `top_changes`, where there are classes."""
    places = content.classes[["variant", "benchmark"]].drop_duplicates()
    found = []
    for variant in content.primary.variants:
        benchmarks = places["benchmark"][places["variant"] == variant]
        if len(benchmarks):
            found.append((variant, [(one, top_changes(content.classes, variant, one)) for one in benchmarks]))
    return found


def _curves(content: PageContent) -> list[tuple[str, list[tuple[str, Markup]]]]:
    primary = content.primary
    panels = [(one, charts.curve_panels(primary, content.curves, one)) for one in primary.benchmarks]
    return [(benchmark, found) for benchmark, found in panels if found]


def _costs(comparison: Comparison) -> list[tuple[str, Markup]]:
    found = [(benchmark, *charts.costs(comparison, benchmark)) for benchmark in comparison.benchmarks]
    return [(one[0], charts.cost_chart(comparison, *one)) for one in found if len(one[2])]


def _run_link(ui: str | None, cell: Mapping[str, Any]) -> str | None:
    """Address of a run in the MLflow UI; None unless the UI has a web address."""
    if not ui or not ui.startswith(("http://", "https://")) or not cell["run_id"] or not cell["experiment_id"]:
        return None
    return f"{ui.rstrip('/')}/#/experiments/{cell['experiment_id']}/runs/{cell['run_id']}"
