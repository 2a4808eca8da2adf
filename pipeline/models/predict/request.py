"""What `predict` is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgmrn.errors import UserError
from mgmrn.prediction import Answer


@dataclass(frozen=True)
class PredictRequest:
    """Pictures, and who is asked about them."""

    model: str
    """File, run, or name in the registry, as `open_model` takes it."""
    places: tuple[Path, ...]
    """Pictures, and folders of them."""
    classes: Path | None
    """Table of classes to choose from; None: the model's own."""
    top: int
    """Classes per picture."""
    attributes: int
    """Attributes per picture."""
    tracking_uri: str


@dataclass(frozen=True)
class PictureAnswer:
    """What became of one picture: an answer, or why there is none."""

    picture: Path
    answer: Answer | None = None
    error: UserError | None = None

    def to_json(self) -> dict[str, Any]:
        """As `--json` and `--json-lines` print it."""
        if self.answer is None:
            return {"picture": str(self.picture), "error": self.error.message if self.error else ""}
        return {"picture": str(self.picture), **asdict(self.answer)}
