"""Ways to run a network's passes: which are offered, which is chosen, and how they are compiled."""

import pytest
import torch
from torch import nn

from mgmrn import device as devices
from mgmrn.device import ON_MAPS, ON_PICTURES, choose_passes, compile_passes, offered_passes

GPU, CPU = torch.device("cuda"), torch.device("cpu")
ALL = {"plain", "graphs", "compiled"}


@pytest.mark.parametrize(
    ("choice", "steps", "costs", "offered", "expected"),
    [
        (False, 10**6, ON_MAPS, ALL, "plain"),
        (True, 1, ON_MAPS, {"plain"}, "compiled"),
        ("graphs", 1, ON_MAPS, ALL, "graphs"),
        ("graphs", 10**6, ON_MAPS, {"plain", "compiled"}, "plain"),
        ("auto", 10**6, ON_MAPS, {"plain"}, "plain"),
        # A graph saves 16.4 ms a step and takes 3 s.
        ("auto", 182, ON_MAPS, ALL, "plain"),
        ("auto", 183, ON_MAPS, ALL, "graphs"),
        ("auto", 10**6, ON_MAPS, ALL, "graphs"),
        # Of several ranks: compiling saves 15.9 ms a step and takes 44 s.
        ("auto", 2767, ON_MAPS, {"plain", "compiled"}, "plain"),
        ("auto", 2768, ON_MAPS, {"plain", "compiled"}, "compiled"),
        # Of pictures: 52.3 ms, and a minute. An epoch of CUB has 80 steps of 64 images.
        ("auto", 80, ON_PICTURES, {"plain", "compiled"}, "plain"),
        ("auto", 30 * 80, ON_PICTURES, {"plain", "compiled"}, "compiled"),
        ("auto", 0, ON_PICTURES, ALL, "plain"),
    ],
)
def test_the_way_that_costs_least_is_taken(choice, steps, costs, offered, expected):
    assert choose_passes(choice, steps, costs, offered) == expected


@pytest.mark.parametrize(
    ("device", "on_maps", "ranks", "capability", "lacking", "expected"),
    [
        (CPU, True, 1, (9, 0), None, {"plain"}),
        (GPU, True, 1, (9, 0), None, ALL),
        (GPU, True, 2, (9, 0), None, {"plain", "compiled"}),
        (GPU, False, 1, (9, 0), None, {"plain", "compiled"}),
        (GPU, True, 1, (6, 1), None, {"plain", "graphs"}),
        (GPU, True, 1, (9, 0), "a C compiler", {"plain", "graphs"}),
    ],
)
def test_ways_that_a_device_and_a_run_allow(device, on_maps, ranks, capability, lacking, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(devices, "lacking_for_triton", lambda: lacking)
    assert offered_passes(device, on_maps=on_maps, ranks=ranks) == expected


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
