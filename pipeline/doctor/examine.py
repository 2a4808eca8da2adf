"""Lines of the doctor's table, in the order in which a run meets what they are about.

Python and the packages are compared with requirements.txt without an import; of benchmarks the files are looked for and not read, which is
what `data verify` does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from pipeline import places
from pipeline.config.compose import load_benchmark_config
from pipeline.config.files import config_names
from pipeline.doctor.line import Line, lacking, wrong
from pipeline.doctor.machine import cpu_line, disk_line, gpu_lines, memory_line, open_files_line, shared_memory_line
from pipeline.doctor.services import port_lines, ray_line, secret_lines, tracking_line
from pipeline.train.cluster import REPOSITORY
from pipeline.where import Where

OLDEST, NEWEST = (3, 11), (3, 12)
"""Versions of Python under which the tests ran."""
SETUP = "make setup, then source .venv/bin/activate"
MAKE_ONE = "python -m pipeline data make synthetic, or data guide cub for a real one"


def examine(where: Where) -> Iterator[Line]:
    """Looks at this machine and at what a run would use; the file that is written to try a disk is removed.

    Args:
        where: folders, tracking store and cluster as the options name them.
    """
    yield python_line()
    yield from package_lines(REPOSITORY / "requirements.txt")
    yield cpu_line()
    yield memory_line()
    yield shared_memory_line()
    yield from gpu_lines()
    yield disk_line(where.storage)
    yield open_files_line()
    yield from port_lines()
    yield ray_line(where.address)
    yield tracking_line(where.tracking_uri)
    yield from benchmark_lines(where.data_root)
    yield from secret_lines()


def python_line(running: tuple[int, int] = sys.version_info[:2]) -> Line:
    """Whether the tests ran under this version of Python."""
    shown = ".".join(map(str, running))
    if running < OLDEST:
        return lacking("Python", f"{shown} is too old", "make PYTHON=python3.12 setup")
    if running > NEWEST:
        return Line("warn", "Python", f"{shown} was not tried", "take 3.11 or 3.12: make PYTHON=python3.12 setup")
    return Line("ok", "Python", f"{shown} at {sys.prefix}")


def package_lines(requirements: Path) -> Iterator[Line]:
    """A line for each package that is missing or of another version, and one for all others.

    Args:
        requirements: file that pins the packages.
    """
    if not requirements.is_file():
        missing = f"{requirements} is not there, so versions are not compared"
        yield Line("warn", "packages", missing, "run in the checkout's folder")
        return
    fine = 0
    for text in requirements.read_text(encoding="utf-8").splitlines():
        if not text.strip() or text.startswith("#"):
            continue
        wanted = Requirement(text)
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            yield lacking(wanted.name, "not installed", SETUP)
            continue
        if wanted.specifier.contains(there, prereleases=True):
            fine += 1
        else:
            yield Line("warn", wanted.name, f"{there}, tried with {wanted.specifier}", SETUP)
    yield Line("ok", "packages", f"{fine} as in {requirements.name}")


def benchmark_lines(root: Path) -> Iterator[Line]:
    """A line for each benchmark of which a data root holds anything; a root that was named and does not exist is an error."""
    if not root.is_dir():
        if root == places.DATA_ROOT:
            yield Line("warn", "data root", f"{root} is not there yet", MAKE_ONE)
        else:
            yield wrong("data root", f"{root} does not exist", "name the folder that holds xlsa17/ with --data-root")
        return
    found = [line for name in config_names("benchmark") if (line := _benchmark_line(root, name)) is not None]
    yield from found or [Line("warn", "data root", f"there is no benchmark in {root}", MAKE_ONE)]


def _benchmark_line(root: Path, name: str) -> Line | None:
    # Loads scipy, which takes half a second.
    from mgmrn.data.xlsa17 import lists_folder, word_vector_file

    config = load_benchmark_config(name)
    lists = lists_folder(root, config.name)
    if not lists.is_dir():
        return None
    needed = {
        "res101.mat": lists / "res101.mat",
        "att_splits.mat": lists / "att_splits.mat",
        "word vectors": word_vector_file(root, config),
        "pictures": root / config.name,
    }
    verify = f"python -m pipeline data verify {name} --data-root {root}"
    if missing := [f"{what} at {path}" for what, path in needed.items() if not path.exists()]:
        return Line("warn", name, f"lacks {', '.join(missing)}", f"{verify}, or data guide")
    return Line("ok", name, "its files are there, and were not read", verify)
