"""Ways to run a network's passes: which are offered, which is chosen, and how they are compiled."""

import pytest
import torch
from torch import nn

from mgmrn import device as devices
from mgmrn.config import ScheduleConfig
from mgmrn.device import ON_MAPS, ON_PICTURES, autocast, cheapest, choose_passes, compile_passes

GPU, CPU = torch.device("cuda"), torch.device("cpu")
ALL = {"plain", "graphs", "compiled"}


@pytest.mark.parametrize(
    ("steps", "costs", "offered", "expected"),
    [
        (10**6, ON_MAPS, {"plain"}, "plain"),
        # A graph saves 16.4 ms a step and takes 3 s.
        (182, ON_MAPS, ALL, "plain"),
        (183, ON_MAPS, ALL, "graphs"),
        (10**6, ON_MAPS, ALL, "graphs"),
        # Of several ranks: compiling saves 15.9 ms a step and takes 44 s.
        (2767, ON_MAPS, {"plain", "compiled"}, "plain"),
        (2768, ON_MAPS, {"plain", "compiled"}, "compiled"),
        # Of pictures: 52.3 ms, and a minute. An epoch of CUB has 80 steps of 64 images.
        (80, ON_PICTURES, {"plain", "compiled"}, "plain"),
        (30 * 80, ON_PICTURES, {"plain", "compiled"}, "compiled"),
        (0, ON_PICTURES, {"plain", "compiled"}, "plain"),
    ],
)
def test_the_way_that_takes_the_least_time(steps, costs, offered, expected):
    assert cheapest(costs, offered, steps) == expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_precision_of_products_on_a_cpu(precision, expected):
    matrix = torch.eye(2)
    with autocast(CPU, ScheduleConfig(precision=precision)):
        assert (matrix @ matrix).dtype == expected


MANY = 10**6


@pytest.mark.parametrize(
    ("choice", "steps", "device", "on_maps", "ranks", "capability", "lacking", "expected"),
    [
        (False, MANY, GPU, True, 1, (9, 0), None, "plain"),
        (True, 1, CPU, False, 2, (9, 0), None, "compiled"),
        ("graphs", 1, GPU, True, 1, (6, 1), "a C compiler", "graphs"),
        ("graphs", MANY, CPU, True, 1, (9, 0), None, "plain"),
        ("graphs", MANY, GPU, True, 2, (9, 0), None, "plain"),
        ("auto", MANY, CPU, True, 1, (9, 0), None, "plain"),
        ("auto", MANY, GPU, True, 1, (9, 0), None, "graphs"),
        ("auto", 1, GPU, True, 1, (9, 0), None, "plain"),
        ("auto", MANY, GPU, True, 1, (9, 0), "a C compiler", "graphs"),
        ("auto", MANY, GPU, True, 2, (9, 0), None, "compiled"),
        ("auto", MANY, GPU, False, 1, (9, 0), None, "compiled"),
        ("auto", MANY, GPU, False, 1, (6, 1), None, "plain"),
        ("auto", MANY, GPU, False, 1, (9, 0), "a C compiler", "plain"),
    ],
)
def test_how_passes_are_run(choice, steps, device, on_maps, ranks, capability, lacking, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(devices, "lacking_for_triton", lambda: lacking)
    assert choose_passes(choice, steps, device, on_maps=on_maps, ranks=ranks) == expected


@pytest.mark.parametrize(
    ("device", "micro_batches", "mode"),
    # The second micro-batch would overwrite the gradients of the first.
    [(GPU, 1, "reduce-overhead"), (GPU, 2, None), (CPU, 1, None)],
)
def test_compiled_passes_are_recorded_on_a_gpu_where_there_is_one_of_them(device, micro_batches, mode, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    asked, module = [], nn.Linear(1, 1)
    monkeypatch.setattr(module, "compile", lambda **options: asked.append(options))
    compile_passes(module, device, micro_batches)
    assert asked == [{"mode": mode, "dynamic": False}]
