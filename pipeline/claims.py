"""Claims: a run's folder, or the sending of its spool, belongs to one living driver at a time.

A claim is a small file of its own in the storage's folder `claims`, which holds the driver's tag. It is written first, and then the others are
looked for: of two drivers one at least sees the other. That needs neither links nor locks, which object stores lack, nor a clock.
"""

import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from mgmrn.errors import ResourceError
from pipeline.driver import Driver, driver_is_dead, driver_tag
from pipeline.storage import StoragePath

FOLDER = "claims"
YIELD_SECONDS = 5.0
"""Seconds for which the first of several that claim at once, by the names of their claims, waits for the others to withdraw."""
LOOK_SECONDS = 0.1


class TakenError(ResourceError):
    """A living driver works on the run; `holder` is its tag."""

    def __init__(self, name: str, holder: str) -> None:
        driver = Driver.parse(holder)
        by = f"process {driver.pid} on {driver.host}" if driver else holder
        super().__init__(f"{name} is being run by {by}", "wait for it to end, then give the same command again")
        self.holder = holder


_mine = threading.RLock()
"""Held while this process makes or deletes a claim, so that it makes one claim alone."""


def take(folder: StoragePath) -> None:
    """Claims a folder for this process, which may hold it already. Raises `TakenError` when a living driver holds it."""
    with _mine:
        if any(map(_is_own, _claims(folder).values())):
            return
        own = folder.parent / FOLDER / f"{folder.name}~{secrets.token_hex(8)}"
        own.write(driver_tag().encode())
        deadline = time.monotonic() + YIELD_SECONDS
        try:
            while others := _living(folder):
                if min(others) < own.name or time.monotonic() >= deadline:
                    raise TakenError(folder.name, next(iter(others.values())))
                time.sleep(LOOK_SECONDS)
        except BaseException:
            own.delete()
            raise


def release(folder: StoragePath) -> None:
    """Deletes the claim of this process, where there is one."""
    with _mine:
        for name, holder in _claims(folder).items():
            if _is_own(holder):
                (folder.parent / FOLDER / name).delete()


@contextmanager
def taken(folders: Iterable[StoragePath]) -> Iterator[None]:
    """Claims several folders for as long as the context lasts; none where a living driver holds one, with a `TakenError`."""
    with ExitStack() as stack:
        for folder in folders:
            take(folder)
            stack.callback(release, folder)
        yield


def drop_dead_claims(storage: StoragePath) -> None:
    """Deletes the claims in a storage that dead drivers of this host left.

    `take` deletes those of its folder alone, and the folder of a run that had finished when its driver was killed is not taken again.
    """
    for name in (storage / FOLDER).names():
        holder = Driver.parse(((storage / FOLDER / name).read() or b"").decode())
        if holder and holder.is_local and holder.is_dead:
            (storage / FOLDER / name).delete()


def living_holder(folder: StoragePath) -> str | None:
    """Tag of another, living driver that holds the folder; None where there is none."""
    return next(iter(_living(folder).values()), None)


def _living(folder: StoragePath) -> dict[str, str]:
    """Claims of other, living drivers; those of dead ones are deleted."""
    found = {name: holder for name, holder in _claims(folder).items() if not _is_own(holder)}
    for name in [name for name, holder in found.items() if driver_is_dead(holder)]:
        (folder.parent / FOLDER / name).delete()
        del found[name]
    return found


def _claims(folder: StoragePath) -> dict[str, str]:
    """Tags of the drivers that claim a folder, by the names of their claims."""
    claims = folder.parent / FOLDER
    found = {name: (claims / name).read() for name in claims.names() if name.rpartition("~")[0] == folder.name}
    return {name: tag.decode() for name, tag in found.items() if tag is not None}


def _is_own(holder: str) -> bool:
    driver = Driver.parse(holder)
    return driver is not None and driver.is_this_process
