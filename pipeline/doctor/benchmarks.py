"""Which of the shipped benchmarks stand in the data root. Files are looked for, not read: that is what `data verify` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline import places
from pipeline.config.compose import load_benchmark_config
from pipeline.config.files import config_names
from pipeline.doctor.line import Line, wrong

MAKE_ONE = "python -m pipeline data make synthetic, or data guide cub for a real one"


def benchmark_lines(root: Path) -> Iterator[Line]:
    """A line for every benchmark of which there is anything. A root that is not there is an error where somebody named it."""
    if not root.is_dir():
        if root == places.DATA_ROOT:
            yield Line("warn", "data root", f"{root} is not there yet", MAKE_ONE)
        else:
            yield wrong("data root", f"{root} does not exist", "name the folder that holds xlsa17/ with --data-root")
        return
    found = [line for name in config_names("benchmark") if (line := _benchmark_line(root, name)) is not None]
    yield from found or [Line("warn", "data root", f"there is no benchmark in {root}", MAKE_ONE)]


def _benchmark_line(root: Path, name: str) -> Line | None:
    # Loads scipy, which takes a moment.
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
    if lacking := [f"{what} at {path}" for what, path in needed.items() if not path.exists()]:
        return Line("warn", name, f"lacks {', '.join(lacking)}", f"{verify}, or data guide")
    return Line("ok", name, "its files are there, and were not read", verify)
