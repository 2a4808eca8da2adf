"""Prepared views of an experiment in MLflow's UI: columns, filter, order and grouping, which MLflow keeps as tags of the experiment.

They are what its *Save view* makes, and stand in its menu *Views*; `viewStateShareKey=KEY` in the address of an experiment opens one.
"""

import json
import time
from collections.abc import Mapping, Sequence

from pipeline.analysis.runs import FIGURES, prefix_of

VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the tags; the view's key follows."""


def grid_views(split: str, primary: str) -> dict[str, str]:
    """Tags of a grid's views, for the split and by the figure on which its variants are compared: means over seeds, and runs by variant."""
    first, *others = _figures(split, primary)
    beside = [f"metrics.`{name}/{primary}`" for name in ("std", "difference", "p_holm")]
    means = [first, *beside, *others, "metrics.`seeds`"]
    groups = [{"mode": "tag", "groupByData": tag} for tag in ("mgmrn.benchmark", "mgmrn.variant")]
    by_variant = {"aggregateFunction": "average", "groupByKeys": groups}
    # Links to runs of other launches have no params, but the tags.
    is_run = f"tags.`mgmrn.split` = '{split}' and tags.`mgmrn.seed` LIKE '%'"
    return {
        **_view("variants", "Variants: means over seeds", "tags.`mgmrn.kind` = 'variant'", split, means),
        **_view("runs", "Runs by variant", is_run, split, ["tags.`mgmrn.seed`", first, *others], by_variant),
    }


def run_view(split: str, metric: str, params: Sequence[str]) -> dict[str, str]:
    """Tag of a view of runs by their figures on a split, the best by one of them first, with some of their params."""
    columns = [*(f"params.`{name}`" for name in params), *_figures(split, metric)]
    return _view("runs", "Runs, the best first", "tags.`mgmrn.kind` = 'run'", split, columns)


def _figures(split: str, first: str) -> list[str]:
    return [f"metrics.`{prefix_of(split)}{key}`" for key in sorted(FIGURES, key=lambda key: key != first)]


def _view(
    key: str, title: str, wanted: str, split: str, columns: Sequence[str], groups: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Tag of a view of the runs that a filter finds, ordered by the first metric; its JSON has the fields of the UI's own state."""
    state = {
        "searchFilter": wanted,
        "orderByKey": next(name for name in columns if name.startswith("metrics.")),
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "groupBy": groups,
        "chartsSearchFilter": prefix_of(split),
    }
    envelope = {"name": title, "createdAt": int(time.time() * 1000), "state": json.dumps(state)}
    return {VIEW_TAG + key: json.dumps(envelope)}
