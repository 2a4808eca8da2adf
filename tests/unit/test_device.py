"""When passes are compiled, and when they are recorded as CUDA graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mgmrn import device as devices
from mgmrn.config import Compile
from mgmrn.device import compile_passes, lacking_for_triton

GPU, CPU = torch.device("cuda"), torch.device("cpu")


class Asked(nn.Linear):
    """Notes how it was asked to compile."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.asked: list[dict[str, object]] = []

    def compile(self, **options: object) -> None:
        self.asked.append(options)


@pytest.fixture
def equipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with all that Triton needs."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(devices, "lacking_for_triton", lambda: None)
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")


@pytest.mark.usefixtures("equipped")
@pytest.mark.parametrize(
    ("choice", "device", "micro_batches", "modes"),
    [
        (False, GPU, 1, []),
        ("auto", CPU, 1, []),
        ("auto", GPU, 1, ["reduce-overhead"]),
        # The gradients of the first would be overwritten by the second.
        ("auto", GPU, 2, [None]),
        (True, GPU, 1, ["reduce-overhead"]),
        (True, CPU, 1, [None]),
    ],
)
def test_who_compiles_and_how(choice: Compile, device: torch.device, micro_batches: int, modes: list[object]) -> None:
    module = Asked()
    compile_passes(module, choice, device, micro_batches)
    assert module.asked == [{"mode": mode, "dynamic": False} for mode in modes]


@pytest.mark.parametrize("missing", ["capability", "compiler"])
@pytest.mark.usefixtures("equipped")
def test_auto_leaves_the_network_as_it_is_where_something_is_missing(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "capability":
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    else:
        monkeypatch.setattr(devices, "lacking_for_triton", lambda: "a C compiler")
    module = Asked()
    compile_passes(module, "auto", GPU, 1)
    assert module.asked == []


def test_what_triton_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(devices, "find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lacking_for_triton() == "a C compiler (gcc or clang)"
    (tmp_path / "clang").write_text("")
    (tmp_path / "clang").chmod(0o755)
    monkeypatch.setattr(devices.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert lacking_for_triton() == "Python's headers (Python.h)"
    (tmp_path / "Python.h").write_text("")
    assert lacking_for_triton() is None
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    assert lacking_for_triton() == "the package triton"
