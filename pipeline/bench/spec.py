"""What processes of a benchmark are told to train, as plain values."""

from __future__ import annotations

from pathlib import Path

from mgmrn.config import ExperimentConfig, Frozen


class TrainingSpec(Frozen):
    """An experiment, where its files are, and how many threads a process may use."""

    config: ExperimentConfig
    data_root: Path
    cache_root: Path
    threads: int


class StretchSpec(TrainingSpec):
    """What the ranks of a Ray Train run are to time, and where rank 0 says how it went."""

    batches: int
    answer: Path
