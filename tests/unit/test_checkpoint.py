"""Files are written whole or not at all; checkpoints that cannot be loaded are answered with one sentence."""

import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from mgmrn.atomic_file import replacing
from mgmrn.checkpoint import load_checkpoint, load_model, load_state, save_checkpoint
from mgmrn.errors import UserError
from mgmrn.tensor_files import load_strictly, read_state_dict
from tests.payload import Payload

READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda path: load_checkpoint(path.parent, "one"),
    "exported model": load_model,
    "weights of a backbone": read_state_dict,
}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "made" / "file"
    with replacing(path) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(error), replacing(path) as file:
        file.write(b"ne")
        raise error
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == {path: b"old"}
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, "permissions follow the umask"


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", 0.2, 0.5, 0.99])
def test_a_checkpoint_that_lost_its_end_is_named(tmp_path: Path, content: bytes | float) -> None:
    path = tmp_path / "state.pt"
    save_checkpoint(tmp_path, {"weights": torch.randn(10_000)}, "one")
    whole = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else whole[: int(content * len(whole))])
    with pytest.raises(UserError, match=r"the checkpoint is cut short.*state\.pt"):
        load_checkpoint(tmp_path, "one")


@pytest.mark.parametrize("reader", ["checkpoint", "exported model"])
def test_a_flipped_bit_is_named(tmp_path: Path, reader: str) -> None:
    save_checkpoint(tmp_path, {"weights": torch.randn(1000)}, "one")
    content = bytearray((tmp_path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged: its record .* is not as it was written.*state\.pt"):
        READERS[reader](tmp_path / "state.pt")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "pickle"])
def test_code_is_never_run(tmp_path: Path, reader: str, archive: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "state.pt"
    content = {"run_identity": "one", "trainer": Payload(canary)}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(UserError) as caught:
        READERS[reader](path)
    assert f"asks for {os.mkdir.__module__}.mkdir" in caught.value.message
    assert caught.value.message.endswith("nothing of it was run")
    assert caught.value.where == str(path) and "trust no file that asks for more" in caught.value.hint
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.is_dir(), "an unsafe reader runs the payload"


def test_a_failing_disk_is_no_mistake_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, {}, "one")
    monkeypatch.setattr(torch, "load", Mock(side_effect=OSError(5, "Input/output error")))
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
        load_strictly(nn.Linear(4, 2), weights, "it is another", "model.pt", "")
    assert caught.value.message == "it is another: bias is missing, gate is unknown, weight is (2, 3) instead of (2, 4)"
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    with pytest.raises(UserError, match=r"0\.weight is missing, .* and 3 more"):
        load_strictly(network, {}, "it is another", "model.pt", "")
