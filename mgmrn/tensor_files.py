"""Files of named tensors: read without running code, checked against the names and shapes of a network."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mgmrn.errors import UserError, some
from mgmrn.reading import SNIFFED, refuse_foreign

_ASKED = re.compile(r"GLOBAL (\S+)")
"""Name that torch's reader refuses to look up."""


def read_plain(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """Reads a dictionary of tensors and plain values, onto the CPU; `kind` names the file in errors.

    Raises UserError when the file is missing, unreadable or cut short, or holds anything else, such as code, and
    OSError or MemoryError when the disk fails or the memory is full, which may pass.
    """
    try:
        # Torch's reader has no clear error for a zip archive without its end.
        with path.open("rb") as file:
            if file.read(2) == b"PK" and not zipfile.is_zipfile(file):
                raise UserError(f"the {kind} is cut short", str(path), remedy)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"there is no {kind}", str(path), "check the path") from error
    except PermissionError as error:
        raise UserError(f"the {kind} may not be read", str(path), "change its permissions") from error
    except (OSError, MemoryError, UserError):
        raise
    # On bytes that are no archive torch's reader raises many kinds of exception (IndexError, KeyError, …).
    except Exception as error:
        if asked := _ASKED.search(str(error)):
            what = f"{asked[1]}, which is neither a tensor nor a plain value: nothing of it was run"
            hint = "save a dictionary of tensors, and trust no file that asks for more"
            raise UserError(f"the {kind} asks for {what}", str(path), hint) from error
        with path.open("rb") as file:
            head = file.read(SNIFFED)
        if not head.startswith(b"PK"):
            refuse_foreign(head, kind, path, remedy)
        message = f"the {kind} is cut short, or holds something other than tensors and plain values"
        raise UserError(message, str(path), remedy) from error
    if not isinstance(state, dict):
        raise UserError(f"the {kind} is not a dictionary of tensors and plain values", str(path), remedy)
    return state


def refuse_damaged(path: Path, kind: str, remedy: str) -> None:
    """Raises UserError for a record that differs from its CRC-32, which torch's reader ignores."""
    try:
        with zipfile.ZipFile(path) as file:
            # Torch's reader treats a record with a folder's attribute as empty.
            record = file.testzip() or next((one.filename for one in file.infolist() if one.external_attr), None)
    # On a broken directory or record, zipfile raises many kinds of exception.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise UserError(f"the {kind} is damaged: {error}", str(path), remedy) from error
    if record is not None:
        raise UserError(f"the {kind} is damaged: its record {record} is not as it was written", str(path), remedy)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a file of named tensors and nothing else (`.safetensors` too); the errors are those of `read_plain`."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"the weights file is damaged: {error}", str(path), "get it again") from error
    state = read_plain(path, "weights file", "get it again")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise UserError("the weights file is not a state dict of tensors", str(path), "save model.state_dict()")
    return state


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], verdict: str, where: str, hint: str) -> None:
    """Loads weights whose names and shapes must all fit. Raises UserError with the first that do not."""
    wanted = module.state_dict()
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in wanted]
    wrong += [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if wrong:
        raise UserError(f"{verdict}: {some(wrong, 5)}", where, hint)
    module.load_state_dict(dict(weights))
