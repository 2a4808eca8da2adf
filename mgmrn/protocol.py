"""The evaluation protocol on one split: scores of all evaluation images, their figures, and the file that keeps both.

`tune` chooses γ on its own curve (pseudo-seen and pseudo-unseen images); `final` takes it as given. Figures are named
`val/…` on `tune` and `test/…` on `final`. N_s seen and N_u unseen images, U classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from mgmrn.atomic_file import replacing
from mgmrn.data.seal import check_open
from mgmrn.data.splits import SplitData
from mgmrn.metrics import ZSLResult, zsl_result

PREFIX = {"tune": "val", "final": "test"}


@dataclass(frozen=True)
class Evaluation:
    """Scores of the evaluation images of a split, and their figures."""

    split: str
    seen_scores: Float[np.ndarray, "N_s U"]
    unseen_scores: Float[np.ndarray, "N_u U"]
    seen_labels: Int[np.ndarray, " N_s"]
    unseen_labels: Int[np.ndarray, " N_u"]
    seen_ids: Int[np.ndarray, " N_s"]
    """Positions in the benchmark's image list."""
    unseen_ids: Int[np.ndarray, " N_u"]
    seen_classes: Bool[np.ndarray, " U"]
    gamma: float | None
    """None, on `tune` alone: the best γ of these scores."""

    def __post_init__(self) -> None:
        assert self.gamma is not None or self.split == "tune", "γ is never chosen on test images"

    @cached_property
    def result(self) -> ZSLResult:
        """The figures, and the γ at which they hold."""
        seen, unseen = (self.seen_scores, self.seen_labels), (self.unseen_scores, self.unseen_labels)
        return zsl_result(*seen, *unseen, self.seen_classes, self.gamma)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures under their tracking names."""
        return {f"{PREFIX[self.split]}/{name}": figure for name, figure in asdict(self.result).items()}

    def save(self, path: Path) -> None:
        """Writes scores, labels and γ, from which the figures follow; atomically, without pickles."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        with replacing(path) as file:
            np.savez(file, **content | {"gamma": self.result.gamma})


def load_evaluation(path: Path) -> Evaluation:
    """Reads an evaluation file. Raises SealedError in a sealed process for scores of test images."""
    with np.load(path, allow_pickle=False) as arrays:
        split = str(arrays["split"])
        if split == "final":
            check_open(str(path))
        return Evaluation(**{**arrays, "split": split, "gamma": float(arrays["gamma"])})


def evaluate_split(data: SplitData, scores: Float[np.ndarray, "N U"], gamma: float | None) -> Evaluation:
    """The evaluation of scores whose rows are `data.seen` and then `data.unseen`."""
    seen, unseen = data.seen, data.unseen
    assert len(scores) == len(seen) + len(unseen)
    labels_and_ids = (seen.labels, unseen.labels, seen.ids, unseen.ids)
    of_seen, of_unseen = scores[: len(seen)], scores[len(seen) :]
    return Evaluation(data.split, of_seen, of_unseen, *labels_and_ids, data.classes.seen, gamma)
