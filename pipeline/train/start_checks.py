"""What keeps Ray from starting on this machine: found before the start, where Ray itself would hang or end with a misleading error."""

from __future__ import annotations

import os
import resource
import shlex
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from mgmrn.errors import ResourceError

LONGEST_FOLDER = 38
"""Bytes of `RAY_TMPDIR`: a Unix socket's path may have 107, and Ray adds up to 69 (`/ray/session_…/sockets/plasma_store`)."""
_UNQUOTABLE = "'\\"
"""Characters that Ray's own command lines lose: its processes are started by a list that only knows double quotes."""
OBJECT_STORE_SHARE, LARGEST_OBJECT_STORE = 0.3, 200 * 10**9
"""Ray's object store by default: a share of the machine's memory, up to so many bytes."""
RAYLET_ADDRESS_BYTES, RANK_ADDRESS_BYTES = 10**9, 6 * 10**9
"""Address space of Ray's raylet besides two mappings of the object store, and of a rank on CPUs besides one.

Measured on 24.7 GB of memory: 14.3 GB in all and 12.3 GB in all.
"""
PROBE_BYTES = 2**16


def check_start_here() -> None:
    """Checks paths and limits of this process for an instance of Ray on this machine; `private_instance` checks its folder.

    Raises:
        ResourceError: for the first that is wrong.
    """
    package = find_spec("ray")
    check_paths([sys.executable, *(package.submodule_search_locations or () if package else ())])
    check_address_space(resource.getrlimit(resource.RLIMIT_AS)[0], psutil.virtual_memory().total)


def worker_interpreter(executable: str) -> dict[str, str]:
    """Part of a runtime environment that makes Ray start workers with an interpreter whose path a shell would split or run.

    Ray joins the interpreter's path unquoted into a line for bash.

    Args:
        executable: path of the interpreter; a plain one needs nothing.
    """
    quoted = shlex.quote(executable)
    return {} if quoted == executable else {"py_executable": quoted}


def check_paths(paths: Sequence[str]) -> None:
    """Checks that Ray's command lines carry paths unchanged.

    Raises:
        ResourceError: for a path with a quote, a backslash or a control character.
    """
    for path in paths:
        if (found := _unquotable(path)) is not None:
            raise ResourceError(
                f"Ray cannot start processes from {path!r}, whose path has the character {found!r}",
                "move or clone the checkout, and its virtual environment, to a folder without it",
            )


def check_temporary_folder(folder: Path) -> None:
    """Checks that Ray can make its files and sockets in a folder.

    Args:
        folder: `RAY_TMPDIR`.

    Raises:
        ResourceError: when the path is too long or has a character that Ray cannot carry, or when it cannot be written to.
    """
    if (found := _unquotable(str(folder))) is not None:
        raise ResourceError(
            f"Ray cannot use the temporary folder {str(folder)!r}, whose path has the character {found!r}",
            "set TMPDIR to a folder without it",
        )
    if (length := len(os.fsencode(folder))) > LONGEST_FOLDER:
        raise ResourceError(
            f"the path of the temporary folder {folder} has {length} bytes, and Ray's sockets need one of {LONGEST_FOLDER} at most",
            "set RAY_TMPDIR to a shorter one, or unset it",
        )
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(os.urandom(PROBE_BYTES))
            probe.flush()
    except OSError as error:
        raise ResourceError(
            f"Ray cannot write into {folder}: {os.strerror(error.errno or 0)}",
            "make room there and make it writable to you, or set RAY_TMPDIR to another folder of yours",
        ) from error


def check_address_space(limit: int, memory: int) -> None:
    """Checks a limit of address space (`ulimit -v`) against what Ray's processes map.

    Args:
        limit: bytes; negative without a limit.
        memory: bytes of the machine.

    Raises:
        ResourceError: when it is too low.
    """
    needed = needed_address_space(memory)
    if 0 <= limit < needed:
        raise ResourceError(
            f"address space is limited to {limit / 1e9:.1f} GB a process (ulimit -v), "
            f"and Ray's processes map up to {needed / 1e9:.1f} GB on this machine",
            "run `ulimit -v unlimited` in the shell first, or have the limit raised",
        )


def needed_address_space(memory: int) -> int:
    """Bytes of address space that the largest process of a run maps on a machine with so many bytes of memory."""
    store = min(int(OBJECT_STORE_SHARE * memory), LARGEST_OBJECT_STORE)
    return max(2 * store + RAYLET_ADDRESS_BYTES, store + RANK_ADDRESS_BYTES)


def _unquotable(path: str) -> str | None:
    return next((one for one in path if one in _UNQUOTABLE or not one.isprintable()), None)
