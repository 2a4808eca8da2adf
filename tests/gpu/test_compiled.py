"""Compiled passes train the network that plain ones train, on a CPU and on a GPU, where they are recorded as CUDA graphs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mgmrn.device import lacking_for_triton
from tests.gpu.small import TEN_TIMES_ROUNDING

ROOT = Path(__file__).resolve().parents[2]
ON_GPU = torch.cuda.is_available()
# Packages may be found by a PYTHONPATH that is relative to another folder.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
if ON_GPU:  # Compiling takes a minute on one thread; a host with a GPU has cores for it.
    ENVIRONMENT |= {"OMP_NUM_THREADS": str(min(8, os.cpu_count() or 1))}
COMPILERS = (lacking_for_triton() is None) if ON_GPU else (shutil.which("g++") or shutil.which("clang++"))

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not COMPILERS, reason="needs a C++ compiler, on a GPU a C compiler and Python.h"),
]


@pytest.mark.parametrize(
    "changed, graphs",
    [
        ({"order": "joint", "clip_norm": 1.0, "accumulate": 2}, 1),
        pytest.param({"order": "sequential"}, 3, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_compiled_training_equals_plain_training(changed: dict[str, object], graphs: int) -> None:
    told = compiled_training(changed)
    assert told["losses"]["compiled"] == pytest.approx(told["losses"]["plain"], rel=1e-3)
    assert told["disagreement"] < TEN_TIMES_ROUNDING
    assert (told["graphs"], told["breaks"]) == (graphs, [])


@pytest.mark.skipif(not ON_GPU, reason="needs an NVIDIA GPU")
def test_a_rank_of_nccl_trains_the_same_compiled() -> None:
    assert compiled_training({}, "nccl")["disagreement"] < TEN_TIMES_ROUNDING


def compiled_training(changed: dict[str, object], *backend: str) -> dict[str, Any]:
    """Output of `tests.gpu.compiled_training`."""
    command = [sys.executable, "-m", "tests.gpu.compiled_training", json.dumps(changed), *backend]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
