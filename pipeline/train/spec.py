"""Specification of one training run: everything that its workers must know, as plain values that travel to other hosts."""

from pathlib import Path
from typing import Literal

from mgmrn.config import ESZSLConfig, ExperimentConfig, Frozen
from pipeline.storage import StoragePath

Split = Literal["tune", "final"]
LoggedModels = Literal["final", "all", "none"]
"""Runs whose trained model is exported and logged: those of the split, all, or none."""

EVALUATION_FILE, MODEL_FILE = "evaluation.npz", "model.pt"
"""Files of a checkpoint: the scores of the evaluation images, where the epoch was evaluated, and the exported model, where it may count."""


class Calibration(Frozen):
    """Values that a `tune` run chooses and a `final` run takes as frozen."""

    epochs: int
    """Epochs after which training stops; the learning rate follows the config's full schedule up to there."""
    gamma: float
    eszsl_log10: tuple[float, float] | None = None
    """ESZSL alone: log10 of its two regularisers."""


class RunSpec(Frozen):
    """One run of one seed on one split."""

    identity: str
    """Hash of config, split and calibration, which storage folder, checkpoints and tracking carry."""
    config: ExperimentConfig
    split: Split
    calibration: Calibration | None
    """Calibration of a `final` run; None on `tune`, and on `final` without one (γ = 0, all epochs)."""
    data_root: Path
    cache_root: Path
    """Folder of cached features of frozen backbones; local to a host or shared."""
    run_folder: StoragePath
    """Storage of this run, seen by every host."""
    cpus_per_worker: int
    log_model: LoggedModels = "final"

    @property
    def exports_model(self) -> bool:
        """Whether the checkpoint that counts in the end holds the exported model."""
        return self.log_model in ("all", self.split)

    @property
    def epochs(self) -> int:
        """Epochs that this run trains; a closed form takes one."""
        if isinstance(self.config.model, ESZSLConfig):
            return 1
        return self.calibration.epochs if self.calibration else self.config.schedule.epochs

    @property
    def gamma(self) -> float | None:
        """γ of the evaluation: None on `tune`, which chooses it on its own curve."""
        if self.split == "tune":
            return None
        return self.calibration.gamma if self.calibration else 0.0

    @property
    def failure_file(self) -> StoragePath:
        """File in which a worker records a failure that a retry cannot mend."""
        return self.run_folder / "failure.json"

    @property
    def placement_file(self) -> StoragePath:
        """File in which rank 0 notes the placement group, which is removed when the run is ended from outside."""
        return self.run_folder / "placement_group"

    @property
    def artifacts_folder(self) -> StoragePath:
        """Folder of files for the tracking store; they stay until it has them."""
        return self.run_folder / "artifacts"
