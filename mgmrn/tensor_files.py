"""Files of named tensors: read without running code, and held against the names and shapes that a network wants."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgmrn.errors import UserError

_ASKED = re.compile(r"GLOBAL (\S+)")
"""What torch's reader refuses to look up."""
LISTED = 5
"""Misfits that an error names; the others are counted."""


def read_plain(path: Path, kind: str, remedy: str) -> dict[str, Any]:
    """Reads a dictionary of tensors and plain values, onto the CPU.

    Args:
        path: a file that `torch.save` wrote.
        kind: what an error calls it, such as `checkpoint`.
        remedy: how to mend a broken one.

    Raises:
        UserError: when the file is missing, may not be read, is cut short, or holds anything else, code among it.
        OSError, MemoryError: when the disk fails or the memory is full, which may pass.
    """
    try:
        if _is_cut_short(path):
            raise UserError(f"the {kind} is cut short", str(path), remedy)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"there is no {kind}", str(path), "check the path") from error
    except PermissionError as error:
        raise UserError(f"the {kind} may not be read", str(path), "change its permissions") from error
    except (OSError, MemoryError, UserError):
        raise
    # On bytes that are no archive, torch's reader fails with whatever it stumbles over (IndexError, KeyError, …).
    except Exception as error:
        if asked := _ASKED.search(str(error)):
            message = (
                f"the {kind} asks for {asked[1]}, which is neither a tensor nor a plain value: nothing of it was run"
            )
            raise UserError(
                message, str(path), "save a dictionary of tensors, and trust no file that asks for more"
            ) from error
        message = f"the {kind} is cut short, or holds something other than tensors and plain values"
        raise UserError(message, str(path), remedy) from error
    if not isinstance(state, dict):
        raise UserError(f"the {kind} is not a dictionary of tensors and plain values", str(path), remedy)
    return state


def _is_cut_short(path: Path) -> bool:
    """Whether a zip archive, which begins like one, has no end. Torch's reader calls that an invalid argument of the disk's."""
    with path.open("rb") as file:
        return file.read(2) == b"PK" and not zipfile.is_zipfile(file)


def refuse_damaged(path: Path, kind: str, remedy: str) -> None:
    """Compares each record of a file that `torch.save` wrote with the CRC-32 that the file holds; torch's reader does not.

    Raises:
        UserError: when one differs.
    """
    try:
        with zipfile.ZipFile(path) as file:
            # Torch's reader takes a record with the attribute of a folder for an empty one.
            record = file.testzip() or next((one.filename for one in file.infolist() if one.external_attr), None)
    # Of a broken directory or record, zipfile says whatever it stumbles over.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise UserError(f"the {kind} is damaged: {error}", str(path), remedy) from error
    if record is not None:
        raise UserError(f"the {kind} is damaged: its record {record} is not as it was written", str(path), remedy)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a file of named tensors and nothing else; the errors are those of `read_plain`."""
    state = read_plain(path, "weights file", "get it again")
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("the weights file is not a state dict of tensors", str(path), "save model.state_dict()")
    return state


def misfits(
    found: Mapping[str, Tensor],
    wanted: Mapping[str, torch.Size | None],
    *,
    optional: Set[str] = frozenset(),
    ignored: Set[str] = frozenset(),
) -> list[str]:
    """What is missing, unknown or of another shape, a phrase each.

    Args:
        found: the tensors that there are.
        wanted: the shapes that there should be; None where any will do.
        optional: names of `wanted` that may be missing.
        ignored: further names that are known.
    """
    wrong = [f"{name} is missing" for name in wanted if name not in found and name not in optional]
    wrong += [f"{name} is unknown" for name in found if name not in wanted and name not in ignored]
    wrong += [
        f"{name} is {tuple(found[name].shape)} instead of {tuple(shape)}"
        for name, shape in wanted.items()
        if shape is not None and name in found and found[name].shape != shape
    ]
    return wrong


def refuse(wrong: Sequence[str], verdict: str, where: str, hint: str) -> None:
    """Passes where nothing is wrong.

    Raises:
        UserError: the verdict and the first of what is wrong.
    """
    if wrong:
        more = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        raise UserError(f"{verdict}: {'; '.join(wrong[:LISTED])}{more}", where, hint)
