"""A small experiment on the data set of `tests.tiny`: a thin network on the two finest levels of resnet18."""

from pathlib import Path

from tests.tiny import write_benchmark

EXPERIMENT = Path(__file__).with_name("small.yaml").read_text()

SEARCH = Path(__file__).with_name("search.yaml").read_text()
"""Of one trial, to be written beside the experiment."""


def write_small(folder: Path) -> tuple[str, ...]:
    """Writes experiment and data set into a working folder; returns the arguments of `train` that name them."""
    write_benchmark(folder / "data")
    (folder / "small.yaml").write_text(EXPERIMENT)
    return ("small.yaml", "--data-root", "data")


def long_epochs(episodes: int) -> tuple[str, ...]:
    """Overrides for epochs of many steps, so that there is a middle of an epoch to be killed in."""
    values = {"kind": "episodic", "ways": 2, "shots": 2, "episodes": episodes}
    return tuple(part for key, value in values.items() for part in ("--set", f"sampling.{key}={value}"))
