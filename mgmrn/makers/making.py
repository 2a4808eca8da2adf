"""Folders that are written whole or not at all, stamped with their options, never over other files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from mgmrn.errors import UserError

Progress = Callable[[int, int], None]
"""Called with the number of pictures drawn so far and their total."""

Stamp = Mapping[str, Any]
"""What a folder holds and how it was made, as JSON values."""

Task = TypeVar("Task")
Result = TypeVar("Result")


def already_made(folder: Path, name: str, stamp: Stamp) -> bool:
    """Whether the folder, by its stamp in the file `name`, was made as `stamp` says; False if it is absent or empty.

    Raises UserError when it is a file, holds other files, or was made with other options.
    """
    if folder.is_file():
        raise UserError("the folder to make is a file", str(folder), "name a new folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    path, hint = folder / name, "delete the folder, or name a new one"
    if not path.is_file():
        raise UserError("the folder is not empty and was not made by this command", str(folder), hint)
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise UserError("the stamp of a made folder is not readable JSON of an object", str(path), hint) from error
    if differing := sorted(key for key in {*found, *stamp} if found.get(key) != stamp.get(key)):
        raise UserError(f"the folder was made with other options ({', '.join(differing)})", str(folder), hint)
    return True


@contextmanager
def whole_folder(folder: Path, name: str, stamp: Stamp) -> Iterator[Path]:
    """A temporary folder beside `folder`, which takes that name, stamped, when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".making", dir=folder.parent))
    try:
        yield building
        (building / name).write_text(json.dumps(stamp, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        building.chmod(0o755)
        try:
            # Replaces an empty folder, fails on one with files in it.
            os.replace(building, folder)
        except OSError:
            # Another process may have made the same in the meantime.
            if not already_made(folder, name, stamp):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def draw_all(
    draw: Callable[[Task], Result], tasks: Sequence[Task], workers: int, progress: Progress | None
) -> list[Result]:
    """Results of a picklable function over the tasks, in their order; 1 worker is the caller's own process."""
    # Spawned, not forked: a fork would copy the caller's threads (torch, Ray) in the middle of their work.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else None
    with pool or nullcontext():
        results = []
        for result in pool.map(draw, tasks, chunksize=64) if pool else map(draw, tasks):
            results.append(result)
            if progress is not None:
                progress(len(results), len(tasks))
        return results
