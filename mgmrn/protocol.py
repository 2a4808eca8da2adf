"""The evaluation protocol on one split: scores of all evaluation images, the figures, and what is kept of them.

`tune` chooses γ on its own curve (pseudo-seen and pseudo-unseen images); `final` takes it as given. Figures are named `val/…` on `tune` and
`test/…` on `final`, so that nobody mistakes one for the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from mgmrn.atomic_file import replacing
from mgmrn.data.seal import check_open
from mgmrn.data.splits import FinalData, Images, TuneData
from mgmrn.metrics import ZSLResult, zsl_result

PREFIX = {"tune": "val", "final": "test"}


@dataclass(frozen=True)
class Evaluation:
    """Scores of the evaluation images of a split and what the protocol makes of them."""

    split: str
    seen_scores: Float[np.ndarray, "N_s U"]
    unseen_scores: Float[np.ndarray, "N_u U"]
    seen_labels: Int[np.ndarray, " N_s"]
    unseen_labels: Int[np.ndarray, " N_u"]
    seen_ids: Int[np.ndarray, " N_s"]
    """Positions in the benchmark's image list."""
    unseen_ids: Int[np.ndarray, " N_u"]
    seen_classes: Bool[np.ndarray, " U"]
    result: ZSLResult

    @property
    def metrics(self) -> dict[str, float]:
        """The figures under their tracking names."""
        prefix, result = PREFIX[self.split], self.result
        return {
            f"{prefix}/zsl_t1": result.t1,
            f"{prefix}/gzsl_u": result.u,
            f"{prefix}/gzsl_s": result.s,
            f"{prefix}/gzsl_h": result.h,
            f"{prefix}/gzsl_h_oracle": result.h_oracle,
            f"{prefix}/ausuc": result.ausuc,
            f"{prefix}/gamma": result.gamma,
        }

    def save(self, path: Path) -> None:
        """Writes everything but the result (which follows from it and γ), atomically, without pickles."""
        with replacing(path) as file:
            np.savez(
                file,
                split=np.array(self.split),
                seen_scores=self.seen_scores,
                unseen_scores=self.unseen_scores,
                seen_labels=self.seen_labels,
                unseen_labels=self.unseen_labels,
                seen_ids=self.seen_ids,
                unseen_ids=self.unseen_ids,
                seen_classes=self.seen_classes,
                gamma=np.array(self.result.gamma),
            )


def load_evaluation(path: Path) -> Evaluation:
    """Reads what `Evaluation.save` wrote and works the figures out again.

    Raises:
        SealedError: in a sealed process, for scores of test images.
    """
    with np.load(path, allow_pickle=False) as arrays:
        if str(arrays["split"]) == "final":
            check_open(str(path))
        return make_evaluation(
            str(arrays["split"]),
            arrays["seen_scores"],
            arrays["unseen_scores"],
            Labelled(arrays["seen_labels"], arrays["seen_ids"]),
            Labelled(arrays["unseen_labels"], arrays["unseen_ids"]),
            arrays["seen_classes"],
            float(arrays["gamma"]),
        )


@dataclass(frozen=True)
class Labelled:
    """Which images, of which classes."""

    labels: Int[np.ndarray, " N"]
    ids: Int[np.ndarray, " N"]


def make_evaluation(
    split: str,
    seen_scores: Float[np.ndarray, "N_s U"],
    unseen_scores: Float[np.ndarray, "N_u U"],
    seen: Labelled | Images,
    unseen: Labelled | Images,
    seen_classes: Bool[np.ndarray, " U"],
    gamma: float | None,
) -> Evaluation:
    """Scores to figures; `gamma=None` chooses it on this very curve, which only `tune` may do."""
    assert gamma is not None or split == "tune", "γ is never chosen on test images"
    result = zsl_result(seen_scores, seen.labels, unseen_scores, unseen.labels, seen_classes, gamma)
    return Evaluation(
        split, seen_scores, unseen_scores, seen.labels, unseen.labels, seen.ids, unseen.ids, seen_classes, result
    )


def evaluate_split(data: TuneData | FinalData, scores: Float[np.ndarray, "N U"], gamma: float | None) -> Evaluation:
    """The evaluation of scores whose rows are `data.seen` and then `data.unseen`."""
    count = len(data.seen.labels)
    assert len(scores) == count + len(data.unseen.labels)
    return make_evaluation(data.split, scores[:count], scores[count:], data.seen, data.unseen, data.classes.seen, gamma)
