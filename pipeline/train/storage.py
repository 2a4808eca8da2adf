"""Storage folder of runs: whether it can be written to, and which driver holds the folder of a run.

A run's folder belongs to one living driver at a time. The claim is a file beside it with the driver's tag, made by `link`, which succeeds for
one process alone also on network file systems. The claim of a dead driver is replaced under a claim on the claim; one of two drivers gets it.
"""

import errno
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mgmrn.errors import ResourceError
from pipeline.driver import Driver, driver_is_dead, driver_tag

PROBE_BYTES = 2**16
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_GO_ON = "the same command goes on from the last checkpoint"


class StorageError(ResourceError):
    """The storage is full or read-only. A run that meets it can be continued."""


class TakenError(ResourceError):
    """A living driver works on the run; `holder` is its tag."""

    def __init__(self, name: str, holder: str) -> None:
        driver = Driver.parse(holder)
        by = f"process {driver.pid} on {driver.host}" if driver else holder
        super().__init__(f"{name} is being run by {by}", "wait for it to end, then give the same command again")
        self.holder = holder


def write_probe(folder: Path) -> None:
    """Writes a small file without a name into a folder. Raises `OSError` when that fails."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(os.urandom(PROBE_BYTES))
        probe.flush()
        os.fsync(probe.fileno())


def check_writable(folder: Path) -> None:
    """Checks that a folder, or the place where it would be made, can be written to. Raises `StorageError` when it cannot."""
    folder = folder.absolute()
    place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    with explained(place, errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # So says a file, or a file system like /proc.
        write_probe(place)


@contextmanager
def explained(folder: Path, *more: int) -> Iterator[None]:
    """Turns errors of a full or read-only disk, and `more` error numbers, into `StorageError`, unless they name a file outside the folder."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | os.PathLike) and not Path(error.filename).is_relative_to(folder):
            raise
        if error.errno in _FULL:
            raise StorageError(f"the storage folder {folder} is full", f"make room there; {_GO_ON}") from error
        if error.errno in (*_CLOSED, *more):
            message = f"the storage folder {folder} cannot be written to: {os.strerror(error.errno)}"
            raise StorageError(message, f"make it writable, or name another with --storage; {_GO_ON}") from error
        raise


def claim_file(run_folder: Path) -> Path:
    """Path of the claim on a run folder; beside it, since a run that starts again deletes the folder."""
    return run_folder.with_name(f".{run_folder.name}.driver")


def take(run_folder: Path) -> None:
    """Claims a run folder for this process, which may hold it already. Raises `TakenError` when a living driver holds it."""
    run_folder.parent.mkdir(parents=True, exist_ok=True)
    _take(claim_file(run_folder), run_folder.name)


def release(run_folder: Path) -> None:
    """Deletes the claim, where this process holds it."""
    path = claim_file(run_folder)
    if _is_own(_holder(path)):
        with suppress(OSError):
            path.unlink()


@contextmanager
def taken(run_folders: Iterable[Path]) -> Iterator[None]:
    """Claims several run folders for as long as the context lasts; none where a living driver holds one, with a `TakenError`."""
    with ExitStack() as stack:
        for folder in run_folders:
            take(folder)
            stack.callback(release, folder)
        yield


def living_holder(run_folder: Path) -> str | None:
    """Tag of another, living driver that holds the folder; None where there is none."""
    holder = _holder(claim_file(run_folder))
    return None if holder is None or _is_own(holder) or driver_is_dead(holder) else holder


def _take(path: Path, name: str) -> None:
    own = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    own.write_text(driver_tag())
    try:
        while True:
            with suppress(FileExistsError):
                os.link(own, path)
                return
            holder = _holder(path)
            if holder is None:
                continue  # Released since.
            if _is_own(holder):
                return
            if not driver_is_dead(holder):
                raise TakenError(name, holder)
            over = path.with_name(f"{path.name}+")
            _take(over, name)
            try:
                if _holder(path) == holder:
                    os.replace(own, path)
                    return
            finally:
                over.unlink()
    finally:
        own.unlink(missing_ok=True)


def _is_own(holder: str | None) -> bool:
    driver = Driver.parse(holder or "")
    return driver is not None and driver.is_this_process


def _holder(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None
