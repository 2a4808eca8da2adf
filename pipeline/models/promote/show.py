"""A promotion as a person and a program read it."""

from __future__ import annotations

from typing import Any

from pipeline.analysis.tables import as_dict, show_tables, tables
from pipeline.console import Console
from pipeline.models.promote.run import Promotion


def show_promotion(done: Promotion, console: Console) -> None:
    """The difference to the champion there was, then what is registered now."""
    if done.comparisons:
        show_tables(tables(done.comparisons), console)
    else:
        console.line(done.remark)
    version, seeds = done.version, ", ".join(map(str, done.group.seeds))
    console.line(f"{version.name} version {version.number} is the {done.alias}: {done.group.run.name} (seeds {seeds})")
    console.line(f"load it as models:/{version.name}@{done.alias}")


def promotion_to_json(done: Promotion) -> dict[str, Any]:
    """As `promote --json` prints it."""
    return {
        "model": done.version.name,
        "version": done.version.number,
        "alias": done.alias,
        "uri": f"models:/{done.version.name}@{done.alias}",
        "run_id": done.group.run.run_id,
        "seeds": {str(seed): run.run_id for seed, run in sorted(done.group.runs.items())},
        "champion_before": done.champion.number if done.champion else None,
        "remark": done.remark,
        **as_dict(done.comparisons),
    }
