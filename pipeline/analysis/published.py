"""Figures of other methods as their authors published them; they are never mixed with figures of runs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from mgmrn.config import Frozen
from pipeline.config.yaml_tree import parse_yaml, plain

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = Path(__file__).with_name("published.yaml")

LABEL = "Published by their authors, not rerun here; mostly selected on the test images (beside H*, not H)"
"""Heading of these figures wherever they are shown."""

Percent = Annotated[float, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1)]


class _Figures(Frozen):
    t1: Percent | None = None
    u: Percent | None = None
    s: Percent | None = None
    h: Percent | None = None

    @model_validator(mode="after")
    def _has_a_figure(self) -> _Figures:
        if not self.model_fields_set:
            raise ValueError("a benchmark without any figure is left out")
        return self


class _Method(Frozen):
    venue: Text
    source: Text
    backbone: Text
    features: Literal["frozen", "fine-tuned", "not recorded"]
    benchmarks: Annotated[dict[Literal["CUB", "SUN", "AWA2"], _Figures], Field(min_length=1)]


def read_published(text: str, label: str) -> pd.DataFrame:
    """One row per benchmark and method, benchmark by benchmark, the methods of each in the order of the text.

    Columns: `method`, `venue` (with the year), `source` (arXiv id or place of the figures), `backbone`, `features`
    (`frozen`, `fine-tuned` or `not recorded`), `benchmark`, and `t1`, `u`, `s`, `h` in percent as printed (NaN: not given).

    Args:
        text: YAML, a mapping of methods.
        label: name of the text in error messages.

    Raises:
        UserError: when the text is not YAML.
        pydantic.ValidationError: for an unknown field or an impossible figure.
    """
    import pandas as pd

    methods = TypeAdapter(dict[str, _Method]).validate_python(plain(parse_yaml(text, label)))
    rows = [
        {"method": name, **method.model_dump(exclude={"benchmarks"}), "benchmark": benchmark, **figures.model_dump()}
        for name, method in methods.items()
        for benchmark, figures in method.benchmarks.items()
    ]
    order = ["CUB", "SUN", "AWA2"]
    table = pd.DataFrame(rows).astype(dict.fromkeys(("t1", "u", "s", "h"), float))
    return table.sort_values("benchmark", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)


def published_on(benchmarks: Collection[str]) -> pd.DataFrame:
    """Shipped figures on benchmarks of exactly these names: a stand-in or a part of CUB compares with none."""
    shipped = read_published(PUBLISHED.read_text(encoding="utf-8"), PUBLISHED.name)
    return shipped[shipped["benchmark"].isin(list(benchmarks))]
