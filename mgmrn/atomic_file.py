"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file that replaces `path` when the block ends without an error; the folder is made if absent.

    A reader sees the old file or the new one, never a part; after an error nothing is left behind. Raises OSError.
    """
    if os.path.lexists(path) and not path.is_file():  # Like /dev/stdout, which root would replace by a file.
        raise FileExistsError(errno.EEXIST, "it is there and is not a regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
