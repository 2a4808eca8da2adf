"""Folders that this package makes: whole or not at all, stamped with how they were made, never over other files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from mgmrn.atomic_file import replacing
from mgmrn.errors import UserError

Progress = Callable[[int, int], None]
"""Called with the number of pictures drawn so far and their total."""

Stamp = Mapping[str, Any]
"""What a folder holds and how it was made, as JSON values."""

Task = TypeVar("Task")
Result = TypeVar("Result")


def read_stamp(folder: Path, name: str) -> dict[str, Any] | None:
    """The stamp in a made folder; none where there is no such folder or stamp.

    Raises:
        UserError: the stamp is there but is no JSON object.
    """
    path = folder / name
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UserError(
            "the stamp of a made folder is not readable JSON", str(path), "delete the folder and make it again"
        ) from error
    if not isinstance(stamp, dict):
        raise UserError(
            "the stamp of a made folder is no JSON object", str(path), "delete the folder and make it again"
        )
    return stamp


def stamp_to_build_on(folder: Path, name: str) -> dict[str, Any] | None:
    """The stamp of a folder that this package may make or add to; none where it is absent or empty.

    Raises:
        UserError: the folder is a file, or holds what was not made by the command that leaves this stamp.
    """
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise UserError("the data root to make is a file", str(folder), "name a new folder")
    if not any(folder.iterdir()):
        return None
    found = read_stamp(folder, name)
    if found is None:
        raise UserError(
            "the folder is not empty and was not made by this command", str(folder), "name a new or empty folder"
        )
    return found


def already_made(folder: Path, name: str, stamp: Stamp) -> bool:
    """Whether the folder holds just what the stamp describes, so that nothing is left to do.

    Raises:
        UserError: the folder holds something else: other files, or the same kind made with other options.
    """
    found = stamp_to_build_on(folder, name)
    if found is None:
        return False
    check_same(found, stamp, folder)
    return True


def check_same(found: Stamp, wanted: Stamp, folder: Path) -> None:
    """Refuses what was made otherwise.

    Raises:
        UserError: the stamps differ; names in what.
    """
    differing = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
    if differing:
        raise UserError(
            f"the folder was made with other options ({', '.join(differing)})",
            str(folder),
            "delete it or name a new folder",
        )


@contextmanager
def whole_folder(folder: Path, name: str, stamp: Stamp) -> Iterator[Path]:
    """Gives a temporary folder beside `folder`; it takes that name, stamped, when the block ends without an error."""
    with _building(folder) as building:
        yield building
        (building / name).write_text(_as_text(stamp), encoding="utf-8")
        building.chmod(0o755)
        _put_in_place(building, folder, name, stamp)


@contextmanager
def more_of_a_folder(folder: Path, name: str, stamp: Stamp, parts: Sequence[str]) -> Iterator[Path]:
    """Gives a temporary folder, of which some parts move into one that is there when the block ends without an error.

    Args:
        folder: made before by `whole_folder`.
        name: of the stamp's file.
        stamp: of the folder with the parts; written last, so that parts without it are leftovers, which are replaced.
        parts: files and folders, relative; those that the block did not make are left out.
    """
    with _building(folder) as building:
        yield building
        for part in parts:
            if not (building / part).exists():
                continue
            target = folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(building / part, target)
        with replacing(folder / name) as file:
            file.write(_as_text(stamp).encode())


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".making", dir=folder.parent))
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _as_text(stamp: Stamp) -> str:
    return json.dumps(stamp, indent=2, sort_keys=True) + "\n"


def _put_in_place(building: Path, folder: Path, name: str, stamp: Stamp) -> None:
    try:
        # Replaces an empty folder, fails on one with files in it.
        os.replace(building, folder)
    except OSError:
        # Another process was quicker: fine when it made the same, an error otherwise.
        if not already_made(folder, name, stamp):
            raise


def draw_all(
    draw: Callable[[Task], Result], tasks: Sequence[Task], workers: int, progress: Progress | None
) -> list[Result]:
    """Results of `draw` over the tasks, in their order, on so many processes; on this one when `workers` is 1."""
    if workers == 1:
        return _collect(map(draw, tasks), len(tasks), progress)
    # Spawned, not forked: the caller may hold threads (torch, Ray), which a fork would copy in mid-step.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return _collect(pool.map(draw, tasks, chunksize=64), len(tasks), progress)


def _collect(results: Iterable[Result], total: int, progress: Progress | None) -> list[Result]:
    collected = []
    for result in results:
        collected.append(result)
        if progress is not None:
            progress(len(collected), total)
    return collected
