"""Compiled passes train the network that plain ones train; on a GPU, where they are recorded as CUDA graphs, as on a CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"),
]


@pytest.mark.parametrize(
    "changed, graphs",
    [({"order": "joint", "clip_norm": 1.0, "accumulate": 2}, 1), ({"order": "sequential"}, 3)],
    ids=str,
)
def test_compiled_training_equals_plain_training(changed: dict[str, object], graphs: int) -> None:
    told = compiled_training(changed)
    assert told["losses"]["compiled"] == pytest.approx(told["losses"]["plain"], rel=1e-3)
    assert told["disagreement"] < 1e-2
    assert (told["graphs"], told["breaks"]) == (graphs, [])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_rank_of_nccl_trains_the_same_compiled() -> None:
    assert float(printed_by("tests.gpu.compiled_rank").splitlines()[-1]) < 1e-2


def printed_by(module: str, *arguments: str) -> str:
    """Standard output of `python -m MODULE ARGUMENTS`."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def compiled_training(changed: dict[str, object]) -> dict[str, Any]:
    """What `tests.gpu.compiled_training` found."""
    return json.loads(printed_by("tests.gpu.compiled_training", json.dumps(changed)).splitlines()[-1])
