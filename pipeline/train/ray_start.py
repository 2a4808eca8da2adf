"""Start of Ray on this machine: what keeps it from starting, what keeps the instance to its user, and what a start waits for.

Where something is wrong, Ray itself hangs or ends with a misleading error. It takes jobs from all who reach its ports, by default on all
interfaces, and every user of the machine may write to its session folder, sockets included.
"""

import os
import re
import resource
import secrets
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from mgmrn.errors import ResourceError
from pipeline.console import say
from pipeline.storage import StoragePath, write_probe

LONGEST_FOLDER = 38
"""Bytes of `RAY_TMPDIR`: a Unix socket's path may have 107, and Ray adds up to 69 (`/ray/session_…/sockets/plasma_store`)."""
OBJECT_STORE_SHARE, LARGEST_OBJECT_STORE = 0.3, 200 * 10**9
"""Ray's object store by default: a share of the machine's memory, up to so many bytes."""
RAYLET_ADDRESS_BYTES, RANK_ADDRESS_BYTES = 10**9, 6 * 10**9
"""Address space of Ray's raylet besides two mappings of the object store, and of a rank on CPUs besides one, as measured."""
LATE_SECONDS = 30.0
WORKER_SECONDS = 180.0
RANKS_SECONDS = 300.0
"""Limit for the ranks of a run. Ray Train itself gives up after four waits of a minute for their placement group."""
KEEP_LOGS = "Ray's logs are in /tmp/ray/session_latest/logs of a cluster's hosts; here they stay where RAY_TMPDIR is a folder of mode 700"
"""Hint of an error: the folder of an instance of this process is otherwise deleted when the command ends."""

_REPLACED = (
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_TMPDIR",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
)
"""Variables that have other values for an instance of this process; those of a cluster are restored when it ends."""
_TOKEN = secrets.token_hex(32)
"""Token of all instances of this process: Ray keeps the first that it has read."""
_FOLDER_PREFIX = "mgmrn-"
_UNQUOTABLE = "'\\"
"""Characters that Ray's own command lines lose: its processes are started by a list that only knows double quotes."""


def check_start_here() -> None:
    """Checks paths and limits of this process for an instance of Ray on this machine; `private_instance` checks its folder."""
    package = find_spec("ray")
    check_paths([sys.executable, *(package.submodule_search_locations or () if package else ())])
    check_address_space(resource.getrlimit(resource.RLIMIT_AS)[0], psutil.virtual_memory().total)


def check_paths(paths: Sequence[str]) -> None:
    """Raises a `ResourceError` for a path that Ray's command lines would change: a quote, a backslash, a control character."""
    for path in paths:
        if (found := _unquotable(path)) is not None:
            hint = "move or clone the checkout, and its virtual environment, to a folder without it"
            raise ResourceError(
                f"Ray cannot start processes from {path!r}, whose path has the character {found!r}", hint
            )


def check_temporary_folder(folder: Path) -> None:
    """Raises a `ResourceError` for a `RAY_TMPDIR` that is too long, has a character that Ray loses, or cannot be written to."""
    if (found := _unquotable(str(folder))) is not None:
        message = f"Ray cannot use the temporary folder {str(folder)!r}, whose path has the character {found!r}"
        raise ResourceError(message, "set TMPDIR to a folder without it")
    if (length := len(os.fsencode(folder))) > LONGEST_FOLDER:
        message = f"the path of the temporary folder {folder} has {length} bytes"
        limit = f"Ray's sockets need one of {LONGEST_FOLDER} at most"
        raise ResourceError(f"{message}, and {limit}", "set RAY_TMPDIR to a shorter one, or unset it")
    try:
        write_probe(folder)
    except OSError as error:
        hint = "make room there and make it writable to you, or set RAY_TMPDIR to another folder of yours"
        raise ResourceError(f"Ray cannot write into {folder}: {os.strerror(error.errno or 0)}", hint) from error


def check_address_space(limit: int, memory: int) -> None:
    """Raises a `ResourceError` for a limit of address space (`ulimit -v`, negative without one) below what Ray's processes map."""
    needed = needed_address_space(memory)
    if 0 <= limit < needed:
        limited = f"address space is limited to {limit / 1e9:.1f} GB a process (ulimit -v)"
        hint = "run `ulimit -v unlimited` in the shell first, or have the limit raised"
        raise ResourceError(f"{limited}, and Ray's processes map up to {needed / 1e9:.1f} GB on this machine", hint)


def needed_address_space(memory: int) -> int:
    """Bytes of address space that the largest process of a run maps on a machine with so many bytes of memory."""
    store = min(int(OBJECT_STORE_SHARE * memory), LARGEST_OBJECT_STORE)
    return max(2 * store + RAYLET_ADDRESS_BYTES, store + RANK_ADDRESS_BYTES)


def worker_interpreter(executable: str) -> dict[str, str]:
    """Part of a runtime environment that quotes the interpreter's path, which Ray joins into a line for bash; empty for a plain path."""
    quoted = shlex.quote(executable)
    return {} if quoted == executable else {"py_executable": quoted}


def _unquotable(path: str) -> str | None:
    return next((one for one in path if one in _UNQUOTABLE or not one.isprintable()), None)


@contextmanager
def private_instance() -> Iterator[None]:
    """Sets the environment in which `ray.init` starts an instance of this process that other users cannot use.

    Its ports are on loopback and ask for a random token, in a file of mode 600; its session folder is below one of mode 700, `RAY_TMPDIR`
    where that is one. Token and folder are deleted on exit. Enter it before `ray` is imported: only then are the ports on loopback alone.
    Raises `ResourceError` when no folder can be used.
    """
    with ExitStack() as stack:
        given = stack.enter_context(without_variables(_REPLACED)).get("RAY_TMPDIR")
        folder = Path(given) if given else None
        if folder is None or not _is_private(folder):
            folder = Path(stack.enter_context(_private_folder_below(given)))
        check_temporary_folder(folder)
        token = stack.enter_context(tempfile.NamedTemporaryFile("w", prefix="token-", dir=folder))
        token.write(_TOKEN)
        token.flush()
        os.environ["RAY_AUTH_TOKEN_PATH"], os.environ["RAY_TMPDIR"] = token.name, str(folder)
        # Ray then takes the loopback address for its node's, as it does by default on these two systems.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Ray reads the mode when it is imported. Where it was imported earlier, `ray.init` turns tokens on if the mode is unset.
        if "ray" not in sys.modules:
            os.environ["RAY_AUTH_MODE"] = "token"
        yield


def _private_folder_below(parent: str | None) -> tempfile.TemporaryDirectory[str]:
    """A new folder of mode 700; below `/tmp` where the paths of Ray's sockets would otherwise be too long."""
    try:
        parent = parent or tempfile.gettempdir()
        if len(os.fsencode(f"{parent}/{_FOLDER_PREFIX}12345678")) > LONGEST_FOLDER:
            parent = "/tmp"
        # The last of Ray's processes may still write a log when the folder is deleted.
        return tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        message = f"Ray needs a folder in {parent or 'TMPDIR'}, and none can be made there: {error.strerror}"
        raise ResourceError(message, "name a folder of yours with RAY_TMPDIR") from error


def _is_private(folder: Path) -> bool:
    return os.path.isdir(folder) and folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o077


@contextmanager
def without_variables(names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Takes variables out of the environment, and yields those that there were; on exit all are as before."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield taken
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(taken)


@contextmanager
def said_when_late(what: str, speak: Callable[[str], None] = say) -> Iterator[None]:
    """Says what a block waits for, once, when it takes longer than `LATE_SECONDS`."""
    late = LATE_SECONDS

    def tell() -> None:
        logs = session_logs() or "/tmp/ray/session_latest/logs of its hosts"
        speak(f"still waiting for {what} after {late:.0f} s; Ray's logs are in {logs}")

    timer = threading.Timer(late, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def await_worker() -> None:
    """Waits until Ray has started a process with a runtime environment, as ranks have; a `ResourceError` after `WORKER_SECONDS`."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    started = ray.remote(num_cpus=0, runtime_env={"env_vars": {"MGMRN_START": "1"}})(lambda: None).remote()
    try:
        with said_when_late("the first worker process of Ray"):
            ray.get(started, timeout=WORKER_SECONDS)
    except GetTimeoutError as error:
        message = f"Ray started no worker process within {WORKER_SECONDS:.0f} s{log_says()}"
        raise ResourceError(message, KEEP_LOGS) from error
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise ResourceError(f"Ray cannot start a worker process: {last}", KEEP_LOGS) from error


def await_ranks(ended: Future[Any], begun: StoragePath, speak: Callable[[str], None]) -> None:
    """Waits until rank 0 of a run has begun, or the run has ended. Raises `ResourceError` when it has not begun within `RANKS_SECONDS`."""
    deadline = time.monotonic() + RANKS_SECONDS
    with said_when_late("the workers of the run", speak):
        while not ended.done() and not begun.exists():
            if time.monotonic() >= deadline:
                message = f"no worker of the run began within {RANKS_SECONDS:.0f} s{log_says()}"
                raise ResourceError(message, f"the same command tries again; {KEEP_LOGS}")
            wait([ended], begun.poll_seconds)


_LOGS = ("raylet.err", "raylet.out", "gcs_server.err", "gcs_server.out", "worker-*.err", "runtime_env_agent.log")
"""Files of a session's log folder, the most telling first."""
_TAIL_BYTES = 2**16
_LINE_CHARACTERS = 240
_HEAD = re.compile(r"^\[[^]]* ([A-Z]) \d+ \d+\] (?:\(\w+\) )?(?:\S+:\d+: +)?|^[\d-]+ [\d:,]+\s+([A-Z])\w+ \S+ -- ")
"""Head of a line of Ray's logs; one of the groups is the first letter of the severity."""
_NO_ERROR = re.compile(r"^(:|\*\*\*|- )|\[0x|@ +0x|discovered a bug in Ray")
"""Markers of a worker's job, stack frames, and the raylet's list of conceivable causes."""


def session_logs() -> Path | None:
    """Log folder, on this host, of the instance of Ray that this process is connected to or starts; None without one."""
    import ray

    if ray.is_initialized():
        context = ray.get_runtime_context()
        return Path(context.get_temp_dir(), context.get_session_name(), "logs")
    # Ray names a session's folder by its time and by the process that starts it.
    sessions = Path(os.environ.get("RAY_TMPDIR", "/tmp")).glob(f"ray/session_*_{os.getpid()}/logs")
    return max(sessions, key=lambda folder: folder.parent.name, default=None)


def log_says() -> str:
    """Half a sentence with the last error in Ray's logs on this host; empty where there is none."""
    folder = session_logs()
    line = folder and last_error(folder)
    return f"; Ray's log says: {line}" if line else ""


def last_error(logs: Path) -> str | None:
    """Last error in the logs of a session of Ray, without its time stamp; None where there is none."""
    for pattern in _LOGS:
        for file in sorted(logs.glob(pattern), key=lambda one: one.stat().st_mtime, reverse=True):
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
                lines = stream.read().decode(errors="replace").splitlines()
            # Lines without a severity are errors only in what processes print outside Ray's logger.
            errors = [error for line in lines if (error := _error(line, "E" if file.suffix == ".err" else "I"))]
            if errors:
                return f"{errors[-1][:_LINE_CHARACTERS]} ({file.name})"
    return None


def _error(line: str, severity: str) -> str | None:
    """Text of a line that tells of an error; None for information, a stack frame, or a marker of a worker's job."""
    text = line
    if head := _HEAD.match(line):
        severity, text = head[1] or head[2], line[head.end() :]
    # Of a process that hangs while it starts, the raylet only warns.
    if severity not in "ECF" and "have not registered" not in text:
        return None
    return None if _NO_ERROR.search(text) else text.strip()
