"""A small experiment on the data set of `tests.tiny`: a thin network on the two finest levels of resnet18."""

from pathlib import Path

from tests.tiny import write_benchmark

EXPERIMENT = """\
# Question: does the machinery work? Cost: seconds. Expected score: none.
benchmark:
  name: TINY
  images: {size: 40, resize: squash}
model:
  kind: mgmrn
  backbone: {name: resnet18, weights: none, trainable: all, batch_norm: train}
  levels: [c2, c3]
  width: 16
  regions: {mode: regions, count: 3, reduced_width: 8}
  granularity: {group_norm_groups: 4}
  decoder: {attention_width: 16}
schedule: {epochs: 2}
sampling: {kind: plain, batch: 4}
"""

SEARCH = """\
# Question: none. Cost: none.
base: small.yaml
trials: 1
objective: {metric: ausuc}
space:
  optimiser.head_lr: {kind: float, low: 1.0e-4, high: 1.0e-2, log: true}
"""
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
