"""Cell of an experiment: one seed on one split with a given calibration, and the names, hashes and tags of its run."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from mgmrn.config import SCHEMA_VERSION, ExperimentConfig
from mgmrn.data.splits import SplitData
from pipeline import places
from pipeline.config.compose import ComposedConfig
from pipeline.config.identity import code_digest, config_hash, group_hash
from pipeline.spool import DatasetInput
from pipeline.storage import StoragePath
from pipeline.tracking.environment import numerics
from pipeline.train.placement import Placement, Workers
from pipeline.train.spec import Calibration, LoggedModels, RunSpec, Split

Status = Literal["finished", "cached", "failed", "stopped"]
"""State of a run, or of a whole launch, when a command ends."""


@dataclass(frozen=True)
class RunSummary:
    """Outcome of one run, as `--json` prints it."""

    run_id: str
    name: str
    benchmark: str
    variant: str
    split: Split
    seed: int
    config_hash: str
    status: Status
    gamma: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """`test/…`, `val/…`, `perf/…`; accuracies are fractions."""


@dataclass(frozen=True)
class Cell:
    """One run of an experiment; make it with `make_cell`."""

    composed: ComposedConfig
    split: Split
    calibration: Calibration | None
    variant: str
    config_hash: str
    group_hash: str
    data: SplitData

    @property
    def config(self) -> ExperimentConfig:
        return self.composed.config

    @property
    def benchmark(self) -> str:
        return self.config.benchmark.name

    @property
    def name(self) -> str:
        """Name of the run, like `cub.no_mrm.s3.1f0c9a2e`."""
        return f"{self.benchmark.lower()}.{self.variant}.s{self.config.seed}.{self.config_hash[:8]}"

    @property
    def label(self) -> str:
        return f"{self.name} {self.split}"

    @property
    def calibration_tag(self) -> str:
        """Calibration of a `final` run as text; part of its identity."""
        return self.calibration.model_dump_json() if self.calibration else "none"

    @property
    def identity(self) -> str:
        text = f"{self.config_hash} {self.split} {self.calibration_tag}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def science_hash(self) -> str:
        """Hash that runs of one config on different data share."""
        return config_hash(self.config, "any")

    @property
    def shape_hash(self) -> str:
        """Hash that runs share which take about the same time."""
        return config_hash(self.config, self.data.digest, without=("seed", "loss", "optimiser"))

    def summary(
        self, run_id: str, status: Status, gamma: float | None = None, metrics: Mapping[str, float] | None = None
    ) -> RunSummary:
        named = self.name, self.benchmark, self.variant, self.split, self.config.seed, self.config_hash
        return RunSummary(run_id, *named, status, gamma, metrics or {})

    def folder(self, storage: StoragePath) -> StoragePath:
        return storage / f"{self.name}.{self.split}"

    def spec(
        self, data_root: Path, storage: StoragePath, cpus_per_worker: int, log_model: LoggedModels = "final"
    ) -> RunSpec:
        return RunSpec(
            identity=self.identity,
            config=self.config,
            split=self.split,
            calibration=self.calibration,
            data_root=data_root,
            cache_root=places.CACHE.resolve(),
            run_folder=self.folder(storage),
            cpus_per_worker=cpus_per_worker,
            log_model=log_model,
        )

    def tags(self, study: str, placement: Placement) -> Mapping[str, str]:
        return {
            "mgmrn.kind": "run",
            "mgmrn.study": study,
            "mgmrn.variant": self.variant,
            "mgmrn.benchmark": self.data.benchmark,
            "mgmrn.seed": str(self.config.seed),
            "mgmrn.split": self.split,
            "mgmrn.schema": str(SCHEMA_VERSION),
            "mgmrn.config_hash": self.config_hash,
            "mgmrn.group_hash": self.group_hash,
            "mgmrn.run_identity": self.identity,
            "mgmrn.science_hash": self.science_hash,
            "mgmrn.shape_hash": self.shape_hash,
            "mgmrn.code_digest": code_digest(),
            "mgmrn.numerics": numerics(self.config),
            "mgmrn.data_digest": self.data.digest,
            "mgmrn.world_size": str(Workers(placement.workers, placement.most_workers or placement.workers)),
            "mgmrn.cpus_per_worker": str(placement.cpus_per_worker),
            "mgmrn.gpus_per_worker": f"{placement.gpus_per_worker:g}",
            "mgmrn.attempt": "1",
            "mgmrn.calibration": self.calibration_tag,
        }


def datasets_of(splits: Iterable[SplitData]) -> list[DatasetInput]:
    """Data set of each benchmark with the splits that are used of it."""
    used: dict[str, dict[str, SplitData]] = {}
    for one in splits:
        used.setdefault(one.benchmark, {})[one.split] = one
    datasets = []
    for name, found in used.items():
        data = next(iter(found.values()))
        # Counts of the whole data set: MLflow keeps one profile for a name and digest, whichever split comes first.
        counts = dict(zip(("images", "classes"), data.listed, strict=True))
        datasets.append(DatasetInput(name, data.digest, ", ".join(found), counts))
    return datasets


def make_cell(
    composed: ComposedConfig, seed: int, data: SplitData, calibration: Calibration | None, variant: str
) -> Cell:
    """The cell of a config with another seed."""
    config = composed.config.model_copy(update={"seed": seed})
    hashes = config_hash(config, data.digest), group_hash(config, data.digest)
    return Cell(replace(composed, config=config), data.split, calibration, variant, *hashes, data)
