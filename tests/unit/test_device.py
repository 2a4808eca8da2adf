"""Cases in which passes are compiled, and in which they are recorded as CUDA graphs."""

import pytest
import torch
from torch import nn

from mgmrn import device as devices
from mgmrn.device import compile_passes

GPU, CPU = torch.device("cuda"), torch.device("cpu")
RECORDED, COMPILED = [{"mode": "reduce-overhead", "dynamic": False}], [{"mode": None, "dynamic": False}]


@pytest.mark.parametrize(
    ("choice", "device", "micro_batches", "capability", "lacking", "expected"),
    [
        (False, GPU, 1, (9, 0), None, []),
        ("auto", CPU, 1, (9, 0), None, []),
        ("auto", GPU, 1, (9, 0), None, RECORDED),
        # The second micro-batch would overwrite the gradients of the first.
        ("auto", GPU, 2, (9, 0), None, COMPILED),
        (True, GPU, 1, (9, 0), None, RECORDED),
        (True, CPU, 1, (9, 0), None, COMPILED),
        ("auto", GPU, 1, (6, 1), None, []),
        ("auto", GPU, 1, (9, 0), "a C compiler", []),
    ],
)
def test_passes_are_compiled_where_it_pays(choice, device, micro_batches, capability, lacking, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(devices, "lacking_for_triton", lambda: lacking)
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    asked, module = [], nn.Linear(1, 1)
    monkeypatch.setattr(module, "compile", lambda **options: asked.append(options))
    compile_passes(module, choice, device, micro_batches)
    assert asked == expected
