"""The report page of an ablation: one HTML file that loads nothing."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from markupsafe import Markup

from pipeline.analysis.comparison import SIGNIFICANCE, VERDICTS, Comparison
from pipeline.analysis.page import charts
from pipeline.analysis.page.templates import STYLE, page_template
from pipeline.analysis.paired import LEAST_PAIRS
from pipeline.analysis.runs import SYMBOLS, records_of
from pipeline.analysis.tables import percent, published_table

HERE = Path(__file__).parent
MOST_CLASSES = 10


@dataclass(frozen=True)
class PageContent:
    """Content of the page."""

    title: str
    question: str
    command: str
    made_at: str
    commit: str
    comparisons: tuple[Comparison, ...]
    """One per metric, of the same variants and benchmarks; the first is by the primary metric."""
    curves: pd.DataFrame
    """Points of the seen–unseen curves: `benchmark`, `variant`, `run_id`, `seen`, `unseen`."""
    classes: pd.DataFrame
    """`benchmark`, `variant`, `class`, `group` (`seen` or `unseen`), mean `difference` of the class's accuracy to the base."""
    configs: Mapping[str, Sequence[tuple[str, str, str]]]
    """Variant → config values that it changes: path, value of the base, own value."""
    published: pd.DataFrame
    localisation: pd.DataFrame
    """Text: `benchmark`, `variant`, `split`, `level`, `part`, then a figure of localisation each."""
    ui: str | None = None
    """Address of the MLflow UI that run ids link to."""

    @property
    def primary(self) -> Comparison:
        return self.comparisons[0]

    @property
    def run_ids(self) -> list[str]:
        return [run_id for run_id in self.primary.cells["run_id"] if run_id]


def render_page(content: PageContent) -> str:
    """The page as text, the same for the same content."""
    primary = content.primary
    verdicts = primary.entries["verdict"].value_counts()
    panels = [(one, charts.curve_panels(primary, content.curves, one)) for one in primary.benchmarks]
    levels = [(one, charts.level_chart(primary, one)) for one in primary.benchmarks]
    costs = [(one, charts.cost_chart(primary, one)) for one in primary.benchmarks]
    script = (HERE / "sort.js").read_text(encoding="utf-8")
    filters = (percent, charts.points, charts.time, charts.bar_chart)
    return page_template(HERE / "template.html.j2", filters).render(
        content=content,
        primary=primary,
        others=content.comparisons[1:],
        cells=records_of(primary.cells),
        counts=", ".join(f"{verdicts[one]} {one}" for one in VERDICTS if one in verdicts and one != "base"),
        least_pairs=LEAST_PAIRS,
        significance=SIGNIFICANCE,
        verdicts=charts.SIGNS,
        figures=SYMBOLS,
        curves=[(benchmark, found) for benchmark, found in panels if found],
        levels=[(benchmark, chart) for benchmark, chart in levels if chart],
        costs=[(benchmark, chart) for benchmark, chart in costs if chart],
        classes=[
            (variant, [(name, top_changes(here)) for name, here in found.groupby("benchmark", sort=False)])
            for variant, found in content.classes.groupby("variant", sort=False)
        ],
        published=published_table(content.published),
        style=Markup(STYLE.read_text(encoding="utf-8")),
        script=Markup(script),
        # The page's content policy allows the script of this hash alone.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def top_changes(classes: pd.DataFrame) -> dict[Literal["gains", "losses"], list[dict[str, Any]]]:
    """Classes of one variant on one benchmark that gain and lose most, the largest difference first."""
    classes = classes.sort_values("class")
    up, down = classes[classes["difference"] > 0], classes[classes["difference"] < 0]
    return {
        "gains": records_of(up.nlargest(MOST_CLASSES, "difference")),
        "losses": records_of(down.nsmallest(MOST_CLASSES, "difference")),
    }
