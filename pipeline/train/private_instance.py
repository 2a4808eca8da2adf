"""What keeps a Ray instance that a command starts for itself to its user.

Ray takes tasks and jobs from everyone who reaches its ports unless token authentication is on, listens on all interfaces, and lets every
user of the machine write to its session folder, sockets included.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from mgmrn.errors import ResourceError
from pipeline.train.start_checks import LONGEST_FOLDER, check_temporary_folder

AUTH_MODE = "RAY_AUTH_MODE"
_REPLACED = (AUTH_MODE, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
"""Variables that the instance gets values of its own for; those of a cluster are put back when it ends."""
_PREFIX = "mgmrn-"


@contextmanager
def private_instance() -> Iterator[Callable[[], None]]:
    """Sets the environment in which `ray.init` starts an instance of this process's own that others cannot use.

    The instance gets a random token, which its ports ask for, in a file of mode 600; its ports on loopback; and its session folder below
    a folder of mode 700. `RAY_TMPDIR` is used as it is where it names such a folder. Token and folder are deleted on exit.

    Enter it before `ray` is imported: only then are the ports on loopback alone.

    Yields:
        A function that deletes token and folder, for a process that ends without leaving the context.

    Raises:
        ResourceError: when no folder can be used.
    """
    with ExitStack() as stack:
        replaced = {name: os.environ.pop(name) for name in _REPLACED if name in os.environ}
        stack.callback(_restore, replaced)
        folder = Path(replaced["RAY_TMPDIR"]) if "RAY_TMPDIR" in replaced else _temporary_folder()
        if "RAY_TMPDIR" not in replaced or not _is_private(folder):
            folder = Path(stack.enter_context(_private_folder_below(folder)))
        check_temporary_folder(folder)
        token = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="token-", dir=folder))
        token.write(_token())
        token.flush()
        os.environ["RAY_AUTH_TOKEN_PATH"], os.environ["RAY_TMPDIR"] = token.name, str(folder)
        # Ray then takes the loopback address for its node's, as it does by default on these two systems.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Ray reads the mode when it is imported. Where it was imported earlier, `ray.init` turns tokens on if the mode is unset.
        if "ray" not in sys.modules:
            os.environ[AUTH_MODE] = "token"
        yield stack.close


@cache
def _token() -> str:
    """One for all instances of this process: Ray keeps the first that it has read."""
    return secrets.token_hex(32)


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ResourceError(
            f"Ray needs a folder for temporary files: {error.strerror}", "set TMPDIR to one that you can write to"
        ) from error


def _private_folder_below(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """A new folder of mode 700; below `/tmp` where the paths of Ray's sockets would otherwise be too long."""
    if len(os.fsencode(f"{parent}/{_PREFIX}12345678")) > LONGEST_FOLDER:
        parent = Path("/tmp")
    try:
        # The last of Ray's processes may still write a log when the folder is deleted.
        return tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise ResourceError(
            f"Ray needs a folder in {parent}, and none can be made there: {error.strerror}",
            "name a folder of yours with RAY_TMPDIR",
        ) from error


def _is_private(folder: Path) -> bool:
    try:
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & 0o077


def _restore(replaced: dict[str, str]) -> None:
    for name in _REPLACED:
        os.environ.pop(name, None)
    os.environ.update(replaced)
