"""Python and packages, against what `requirements.txt` pins. Nothing is imported for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from pipeline.doctor.line import Line, lacking

OLDEST, NEWEST = (3, 11), (3, 12)
"""Versions of Python that were tried."""


def python_line(running: tuple[int, int] = sys.version_info[:2]) -> Line:
    """Whether this Python is one that was tried."""
    shown = ".".join(map(str, running))
    if running < OLDEST:
        return lacking("Python", f"{shown} is too old", "make PYTHON=python3.12 setup")
    if running > NEWEST:
        return Line("warn", "Python", f"{shown} was not tried", "take 3.11 or 3.12: make PYTHON=python3.12 setup")
    return Line("ok", "Python", f"{shown} at {sys.prefix}")


def package_lines(requirements: Path) -> Iterator[Line]:
    """A line for every package that is missing or of another version, and one for all the others."""
    if not requirements.is_file():
        yield Line(
            "warn",
            "packages",
            f"{requirements} is not there, so versions are not compared",
            "run in the checkout's folder",
        )
        return
    fine = 0
    for text in requirements.read_text(encoding="utf-8").splitlines():
        if not text.strip() or text.startswith("#"):
            continue
        wanted = Requirement(text)
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            yield lacking(wanted.name, "not installed", "make setup, then source .venv/bin/activate")
            continue
        if wanted.specifier.contains(there, prereleases=True):
            fine += 1
        else:
            yield Line(
                "warn",
                wanted.name,
                f"{there}, tried with {wanted.specifier}",
                "make setup, then source .venv/bin/activate",
            )
    yield Line("ok", "packages", f"{fine} as in {requirements.name}")
