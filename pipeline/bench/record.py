"""A report as a section of `docs/benchmarks.md`."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from mgmrn.atomic_file import replacing
from mgmrn.errors import UserError
from pipeline.bench.report import BenchReport, BenchTable
from pipeline.tracking.environment import REPOSITORY, git_state

BENCHMARKS = REPOSITORY / "docs" / "benchmarks.md"


def append(report: BenchReport, command: str, path: Path = BENCHMARKS) -> None:
    """Adds a section with date, commit, machine and command at the end of the file.

    Raises:
        UserError: where there is no such file, as on a host that was given the code without its documents.
    """
    if not path.is_file():
        raise UserError(
            "there is no file to record figures in", str(path), "run it in a checkout, or leave out --record"
        )
    text = path.read_text(encoding="utf-8").rstrip("\n")
    # Before the new file is begun, which would be a change of the checkout.
    added = section(report, command)
    with replacing(path) as file:
        file.write(f"{text}\n\n{added}".encode())


def section(report: BenchReport, command: str) -> str:
    """Markdown of one report."""
    state = git_state()
    commit = state.sha[:7] + (" with changes" if state.dirty else "")
    machine = ", ".join(f"{name} {value}" for name, value in report.environment.items())
    lines = [
        f"## `{report.bench}` ({date.today().isoformat()})",
        "",
        "```sh",
        command,
        "```",
        "",
        f"Commit {commit}; {machine}.",
        *report.notes,
        "",
        "| what | median | min | max | unit | n |",
        "|---|---|---|---|---|---|",
        *(f"| {r.name} | {r.median:.4g} | {r.min:.4g} | {r.max:.4g} | {r.unit} | {r.n} |" for r in report.results),
        "",
        *(f"- {name}: **{ratio:.3g}**" for name, ratio in report.ratios.items()),
        *(line for table in report.tables for line in _table(table)),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _table(table: BenchTable) -> list[str]:
    cells = [table.columns, ("---",) * len(table.columns), *table.rows]
    return ["", f"{table.title}:", "", *(f"| {' | '.join(row)} |" for row in cells)]
