"""Rows that the ranks worked out, together on one of them. Apart from `protocol`, which drivers load: torch takes seconds."""

from __future__ import annotations

import numpy as np
import torch.distributed as dist
from jaxtyping import Float


def gather_rows(rows: Float[np.ndarray, "n U"]) -> Float[np.ndarray, "N U"] | None:
    """All ranks' rows in the order of the ranks, on rank 0; None on the others. Rows as they are, when alone."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    parts: list[np.ndarray | None] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(rows, parts)
    return None if parts is None else np.concatenate([part for part in parts if part is not None])
