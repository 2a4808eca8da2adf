"""A reproduction as a person and a program read it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.console import Console
from pipeline.models.reproduce.run import Reproduction

_VERDICTS = {
    "equal": "reproduced: every figure is the same to the last bit",
    "within tolerance": "reproduced within the tolerance",
    "differs": "not reproduced",
    None: "not reproduced: the run failed",
}


def show_reproduction(done: Reproduction, console: Console) -> None:
    """Every metric, then the verdict."""
    if done.metrics:
        rows = [
            [one.metric, _value(one.was), _value(one.now), _difference(one.difference), one.verdict]
            for one in done.metrics
        ]
        console.table(["metric", "was", "is", "largest difference", ""], rows)
    again = f", run {done.run_id}" if done.run_id else ""
    console.line(f"{done.source.name}, run {done.source.run_id}: {_VERDICTS[done.verdict]}{again}")


def reproduction_to_json(done: Reproduction) -> dict[str, Any]:
    """As `reproduce --json` prints it."""
    return {
        "run_id": done.source.run_id,
        "name": done.source.name,
        "reproduction_run_id": done.run_id,
        "comparison": "tolerance" if done.remarks else "bitwise",
        "remarks": list(done.remarks),
        "metrics": [asdict(one) for one in done.metrics],
        "verdict": done.verdict or "failed",
    }


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _difference(value: float | None) -> str:
    return "–" if value is None else "0" if value == 0 else f"{value:.2g}"
