"""Checkpoints that cannot be loaded: each answered with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mgmrn.checkpoint import load_checkpoint, load_state, load_strictly, save_checkpoint
from mgmrn.errors import UserError


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut"])
def test_a_broken_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint is cut short.*state\.pt"):
        load_state(path)


def test_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"network": nn.Linear(2, 2)}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="something other than tensors and plain values"):
        load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("place", ["gone.pt", "."])
def test_a_missing_checkpoint_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_state(tmp_path / place)


def test_a_failing_disk_is_no_mistake_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError, match="Input/output error"):
        load_state(tmp_path / "state.pt")


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"epoch": 3}, "one")
    assert load_checkpoint(tmp_path, "one") == {"epoch": 3}
    with pytest.raises(UserError, match=r"another run \(one, wanted two\)"):
        load_checkpoint(tmp_path, "two")


def test_weights_of_another_architecture_are_listed() -> None:
    weights = nn.Linear(3, 2).state_dict() | {"gate": torch.zeros(1)}
    del weights["bias"]
    with pytest.raises(UserError) as caught:
        load_strictly(nn.Linear(4, 2), weights, Path("model.pt"))
    assert caught.value.message == (
        "the checkpoint is of another architecture: "
        "bias is missing; gate is unknown; weight is (2, 3) instead of (2, 4)"
    )


def test_a_long_list_is_cut() -> None:
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    with pytest.raises(UserError, match=r"0\.weight is missing; .* and 3 more"):
        load_strictly(network, {}, Path("model.pt"))
