"""Storage of runs: a folder of a disk that all hosts mount, or a prefix of a bucket (docs/adr/0016).

A file appears whole or not at all. Nothing is appended, renamed or locked: an object store offers none of it.
"""

import errno
import io
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self, TypeVar, final

from mgmrn.atomic_file import replacing
from mgmrn.errors import ResourceError, UserError
from pipeline.redaction import redact

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")

BUCKET = re.compile(r"(s3|gs)://[\w.-]+(/[^?#]*)?")
AWAY_SECONDS = 900.0
"""Seconds for which an object store that does not answer is waited for."""
PAUSE_SECONDS = 1.0
PROBE_BYTES = 2**16
CHUNK_BYTES, CHUNKS_AT_ONCE = 2**25, 8
"""Size and number of the pieces of an object that are sent at the same time; all are held in memory."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ETIMEDOUT)
_GO_ON = "the same command goes on from the last checkpoint"
_NO_ROOM = re.compile("HTTP status 507|StorageFull|Quota")
_NO_ANSWER = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT|INTERNAL_FAILURE|UNAVAILABLE|DEADLINE_EXCEEDED|HTTP status (408|429|5\d\d)"
)
"""Error texts of object stores; Arrow hands on no codes."""

_silent_since: dict[str, float] = {}
"""Time since which a bucket has not answered this process."""


class StorageError(ResourceError):
    """The storage is full, read-only or away. A run that meets it can be continued."""


@final
@dataclass(frozen=True)
class StoragePath:
    """A file or folder of the storage.

    While an object store does not answer, each use of it is repeated. An object store's errors are those of a disk: `OSError` with the number
    of a full disk, `PermissionError` where it refuses, and `TimeoutError` where it has not answered for `AWAY_SECONDS`.
    """

    address: str
    """Path on a disk, or `s3://BUCKET/…` or `gs://BUCKET/…`."""

    @classmethod
    def parse(cls, text: object) -> Self:
        """Storage that a user names. Raises `UserError` for another kind of address, or one with credentials or options."""
        address = str(text)
        if "://" not in address and address.strip():
            return cls(os.path.expanduser(address))
        if not BUCKET.fullmatch(address):
            hint = "give a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; endpoint and credentials belong in the environment"
            raise UserError(f"{redact(address).strip() or 'an empty address'} names no storage", "--storage", hint)
        return cls(address.rstrip("/"))

    def __truediv__(self, name: str) -> Self:
        return type(self)(f"{self.address.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    @property
    def parent(self) -> Self:
        return type(self)(self.address.rpartition("/")[0])

    @property
    def disk(self) -> Path | None:
        """Path on a disk; None in an object store."""
        return None if "://" in self.address else Path(self.address)

    @property
    def poll_seconds(self) -> float:
        """Seconds between two looks for something new; each look at an object store is a request that is paid for."""
        return 0.25 if self.disk else 2.0

    def absolute(self) -> Self:
        return type(self)(os.path.realpath(self.address)) if self.disk else self

    def exists(self) -> bool:
        if self.disk:
            return self.disk.exists()
        from pyarrow.fs import FileType

        return self._patiently(lambda store, key: store.get_file_info(key).type != FileType.NotFound)

    def read(self) -> bytes | None:
        """Content of the file; None where there is none."""
        if self.disk:
            return self.disk.read_bytes() if self.disk.is_file() else None
        with suppress(FileNotFoundError):
            return self._patiently(lambda store, key: bytes(store.open_input_stream(key).readall()))
        return None

    def write(self, content: bytes) -> None:
        """Writes the file; a reader sees the old one or the new one."""
        self._waiting(lambda: self.try_write(content))

    def try_write(self, content: bytes) -> None:
        """`write` without waiting for an object store that does not answer."""
        if self.disk:
            with replacing(self.disk) as file:
                file.write(content)
        else:
            self._once(lambda store, key: _put(store, key, io.BytesIO(content)))

    def send(self, file: IO[bytes]) -> None:
        """`write` with the content of a file, in an object store."""
        self._patiently(lambda store, key: _put(store, key, file))

    def names(self) -> list[str]:
        """Names of the files and folders in this folder, in their order, without those that are being written; none without the folder."""
        if self.disk:
            with suppress(FileNotFoundError, NotADirectoryError):
                return sorted(name for name in os.listdir(self.disk) if not name.startswith("."))
            return []
        # Arrow tells of no folders in Google's store that it has not made.
        return sorted({path.partition("/")[0] for path, _ in self._listed(recursive=self.address.startswith("gs:"))})

    def sizes(self) -> dict[str, int]:
        """Bytes of every file in this folder and below, by its path from here; of a file, under `.`."""
        if self.disk:
            files = (path for path in (self.disk, *self.disk.rglob("*")) if path.is_file())
            return {path.relative_to(self.disk).as_posix(): path.lstat().st_size for path in files}
        return {path: size for path, size in self._listed(recursive=True) if size is not None}

    def delete(self) -> None:
        """Deletes the file, or the folder with all that is in it; nothing where there is neither."""
        if self.disk is None:
            self._patiently(_delete)
        elif self.disk.is_dir() and not self.disk.is_symlink():
            shutil.rmtree(self.disk, ignore_errors=True)
        else:
            self.disk.unlink(missing_ok=True)

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """The file or folder on a disk of this host, to be read until the block ends; a path to nothing where there is none."""
        if self.disk:
            yield self.disk
            return
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, self.name)
            with _room(), suppress(FileNotFoundError):
                self._patiently(lambda store, key: _fetch(store, key, target))
            yield target

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """An empty folder on a disk of this host, whose files stand in this one when the block ends without an error, a manifest last."""
        self.delete()
        if self.disk:
            self.disk.mkdir(parents=True)
            yield self.disk
            return
        # Needs pydantic, without which a command can still say that it is missing.
        from mgmrn.manifest import MANIFEST_FILE

        with tempfile.TemporaryDirectory() as folder:
            with _room():
                yield Path(folder)
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda path: path.name == MANIFEST_FILE):
                with path.open("rb") as file:
                    (self / path.relative_to(folder).as_posix()).send(file)

    def _listed(self, recursive: bool) -> list[tuple[str, int | None]]:
        """Paths from here and sizes of the objects below, and of their folders, which have none."""
        from pyarrow.fs import FileSelector

        def look(store: "FileSystem", key: str) -> list[tuple[str, int | None]]:
            found = store.get_file_info(FileSelector(key, allow_not_found=True, recursive=recursive))
            return [(one.path[len(key) + 1 :], one.size) for one in found]

        return self._patiently(look)

    def _patiently(self, use: Callable[["FileSystem", str], T]) -> T:
        return self._waiting(lambda: self._once(use))

    def _waiting(self, use: Callable[[], T]) -> T:
        """Result of a use of the storage, repeated while that does not answer, which is said once."""
        while True:
            try:
                result = use()
            except TimeoutError as error:
                now = time.monotonic()
                since = _silent_since.setdefault(self._bucket, now)
                if now - since >= AWAY_SECONDS:
                    raise
                if since == now:
                    sys.stderr.write(f"{self._bucket} does not answer, waiting for it: {error.strerror}\n")
                time.sleep(PAUSE_SECONDS)
            else:
                _silent_since.pop(self._bucket, None)
                return result

    def _once(self, use: Callable[["FileSystem", str], T]) -> T:
        try:
            return use(_store(self._bucket), self.address.partition("://")[2])
        except OSError as error:
            if error.errno is not None:  # A file that is not there, or of a disk of this host.
                raise
            # Like "When … in bucket 'b': AWS Error ACCESS_DENIED during …: Access Denied (Request ID: …)".
            reason = re.sub(
                r"^When .*?': | \(Request ID.*|; Details.*| error_info=.*|\n.*", "", str(error), flags=re.DOTALL
            )
            number = errno.ETIMEDOUT if _NO_ANSWER.search(reason) else errno.EACCES
            raise OSError(errno.ENOSPC if _NO_ROOM.search(reason) else number, reason, self.address) from error

    @property
    def _bucket(self) -> str:
        return "/".join(self.address.split("/")[:3])


@cache
def _store(bucket: str) -> "FileSystem":
    """Object store of a bucket, with the endpoint, region and credentials of the environment or their usual files."""
    from pyarrow.fs import FileSystem

    # One request writes a small object, and Google's store is not asked for a quarter of an hour before anything is said.
    options = "allow_delayed_open=true" if bucket.startswith("s3:") else "retry_limit_seconds=10"
    return FileSystem.from_uri(f"{bucket}?{options}")[0]


def _put(store: "FileSystem", key: str, source: IO[bytes]) -> None:
    """Writes an object; Arrow's own `copy_files` loses the error of the request that ends it, without which there is no object."""
    source.seek(0)  # Where it is repeated.
    # No `with`: it would end the object after an error as well.
    stream = store.open_output_stream(key)
    while chunks := list(islice(iter(partial(source.read, CHUNK_BYTES), b""), CHUNKS_AT_ONCE)):
        for chunk in chunks:
            stream.write(chunk)
        stream.flush()
    stream.close()


def _fetch(store: "FileSystem", key: str, target: Path) -> None:
    from pyarrow.fs import FileType, copy_files

    if store.get_file_info(key).type == FileType.Directory:
        target.mkdir(exist_ok=True)
    copy_files(key, str(target), source_filesystem=store)


def _delete(store: "FileSystem", key: str) -> None:
    from pyarrow.fs import FileType

    kind = store.get_file_info(key).type
    with suppress(FileNotFoundError):  # Deleted by another process.
        if kind == FileType.File:
            store.delete_file(key)
        elif kind == FileType.Directory:
            store.delete_dir(key)


@contextmanager
def _room() -> Iterator[None]:
    """Turns the error of a full temporary folder into a `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            hint = f"make room there, or name another with TMPDIR; {_GO_ON}"
            raise StorageError(f"the temporary folder {tempfile.gettempdir()} is full", hint) from error
        raise


def write_probe(folder: Path) -> None:
    """Writes a small file without a name into a folder. Raises `OSError` when that fails."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(os.urandom(PROBE_BYTES))
        probe.flush()
        os.fsync(probe.fileno())


def check_writable(storage: StoragePath) -> None:
    """Checks that a folder, or the place where it would be made, can be written to. Raises `StorageError` when it cannot."""
    if storage.disk is None:
        with explained(storage, errno.ENOENT):
            (storage / "probe").try_write(os.urandom(PROBE_BYTES))
            (storage / "probe").delete()
        return
    folder = storage.disk.absolute()
    place = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    with explained(
        StoragePath(str(place)), errno.ENOENT, errno.ENOTDIR, errno.ELOOP
    ):  # So says a file, or a file system like /proc.
        write_probe(place)


@contextmanager
def explained(storage: StoragePath, *more: int) -> Iterator[None]:
    """Turns errors of a full, read-only or silent storage, and `more` error numbers, into `StorageError`, unless they name a file elsewhere."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | os.PathLike) and not f"{error.filename}/".startswith(f"{storage}/"):
            raise
        if error.errno in _FULL:
            raise StorageError(f"the storage folder {storage} is full", f"make room there; {_GO_ON}") from error
        if error.errno in (*_CLOSED, *more):
            message = f"the storage folder {storage} cannot be written to: {error.strerror}"
            raise StorageError(message, f"make it writable, or name another with --storage; {_GO_ON}") from error
        raise
