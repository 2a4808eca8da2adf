"""What a start of Ray waits for: said after half a minute, and ended at a limit with what Ray's own logs say."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from mgmrn.errors import ResourceError
from pipeline.console import Console, say
from pipeline.errors import error_object, exit_code

LATE_SECONDS = 30.0
"""A wait of this length is said."""
WORKER_SECONDS = 180.0
"""Limit for an instance of Ray, and for the first worker process of a session."""
RANKS_SECONDS = 300.0
"""Limit for the ranks of a run. Ray Train itself gives up after four waits of a minute for their placement group."""
POLL_SECONDS = 0.5
KEEP_LOGS = "Ray's logs are in /tmp/ray/session_latest/logs of a cluster's hosts; here they stay where RAY_TMPDIR is a folder of mode 700"
"""Hint of an error: the folder of an instance of this process's own is otherwise deleted when the command ends."""

_LOGS = ("raylet.err", "raylet.out", "gcs_server.err", "gcs_server.out", "worker-*.err", "runtime_env_agent.log")
"""Files of a session's log folder, the most telling first."""
_TAIL_BYTES = 2**16
_LINE_CHARACTERS = 240
_PREFIX = re.compile(r"^\[[^]]* ([A-Z]) \d+ \d+\] (?:\(\w+\) )?(?:\S+:\d+: +)?|^[\d-]+ [\d:,]+\s+([A-Z])\w+ \S+ -- ")
"""Head of a line of Ray's logs; one of the groups is the first letter of the severity."""

_NO_ERROR = re.compile(r"^(:|\*\*\*|- )|\[0x|@ +0x|discovered a bug in Ray")
"""Markers of a worker's job, stack frames, and the raylet's list of conceivable causes."""


def session_logs() -> Path | None:
    """Log folder, on this host, of the instance of Ray that this process is connected to or tries to start; None without one."""
    import ray

    if ray.is_initialized():
        context = ray.get_runtime_context()
        return Path(context.get_temp_dir(), context.get_session_name(), "logs")
    # Ray names a session's folder by its time and by the process that starts it.
    sessions = Path(os.environ.get("RAY_TMPDIR", "/tmp")).glob(f"ray/session_*_{os.getpid()}/logs")
    return max(sessions, key=lambda folder: folder.parent.name, default=None)


def where_logs_are() -> str:
    """Half a sentence that names the folder of Ray's logs."""
    return f"Ray's logs are in {session_logs() or '/tmp/ray/session_latest/logs of its hosts'}"


def log_says() -> str:
    """Half a sentence with the last error in Ray's logs on this host; empty where there is none."""
    folder = session_logs()
    line = folder and last_error(folder)
    return f"; Ray's log says: {line}" if line else ""


def last_error(logs: Path) -> str | None:
    """Last error in the logs of a session of Ray, without its time stamp; None where there is none.

    Args:
        logs: folder of the log files.
    """
    for pattern in _LOGS:
        for file in sorted(logs.glob(pattern), key=lambda one: one.stat().st_mtime, reverse=True):
            errors = [line for line in map(_error, _tail(file)) if line]
            if errors:
                return f"{errors[-1][:_LINE_CHARACTERS]} ({file.name})"
    return None


def _tail(file: Path) -> list[str]:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    # Lines without a severity are errors only in what processes print outside Ray's logger.
    return lines if file.suffix == ".err" else [line for line in lines if _PREFIX.match(line)]


def _error(line: str) -> str | None:
    """The text of a line that tells of an error: no information, no stack frame, no marker of a worker's job."""
    head = _PREFIX.match(line)
    severity = next(filter(None, head.groups()), "") if head else "E"
    text = line[head.end() :] if head else line
    # Of a process that hangs while it starts, the raylet only warns.
    if severity not in "ECF" and "have not registered" not in text:
        return None
    return None if _NO_ERROR.search(text) else text.strip()


@contextmanager
def said_when_late(what: str, seconds: float = LATE_SECONDS, speak: Callable[[str], None] = say) -> Iterator[None]:
    """Says what a block waits for, once, when it takes longer.

    Args:
        what: a noun.
        seconds: length of a wait that is said.
        speak: takes the sentence.
    """
    timer = threading.Timer(
        seconds, lambda: speak(f"still waiting for {what} after {seconds:.0f} s; {where_logs_are()}")
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def ended_when_stuck(clean_up: Callable[[], None], limit: float = WORKER_SECONDS) -> Iterator[None]:
    """Ends this process with a sentence where a block takes longer than a limit, with exit code 3.

    `ray.init` waits in its C++ part for the first worker processes. There no signal and no exception reaches it, and it ends the process
    itself, with exit code 1, when its raylet ends.

    Args:
        clean_up: called before the end.
        limit: seconds.
    """
    timer = threading.Timer(limit, _end, (clean_up, limit))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end(clean_up: Callable[[], None], limit: float) -> None:
    error = ResourceError(f"Ray did not come up within {limit:.0f} s{log_says()}", KEEP_LOGS)
    console = Console("--json" in sys.argv)
    console.err.write(f"error: {error}\n")
    console.err.flush()
    console.result(error_object(error))
    this = psutil.Process()
    children = this.children()
    with suppress(psutil.Error):
        # Ray's own processes end with this one; a worker that does not come up would outlive it, and a raylet would start others.
        for child in children:
            child.suspend()
        for process in set(this.children(recursive=True)) - set(children):
            process.kill()
    clean_up()
    os._exit(exit_code(error))


def await_worker(limit: float = WORKER_SECONDS, late: float = LATE_SECONDS) -> None:
    """Waits until Ray has started one process with a runtime environment, as ranks and trials have.

    Raises:
        ResourceError: when it has not within the limit, or cannot.
    """
    import ray
    from ray.exceptions import RayError

    started = ray.remote(num_cpus=0, runtime_env={"env_vars": {"MGMRN_START": "1"}})(lambda: None).remote()
    try:
        with said_when_late("the first worker process of Ray", late):
            ray.get(started, timeout=limit)
    except ray.exceptions.GetTimeoutError as error:
        raise ResourceError(f"Ray started no worker process within {limit:.0f} s{log_says()}", KEEP_LOGS) from error
    except RayError as error:
        last = str(error).strip().splitlines()[-1]
        raise ResourceError(f"Ray cannot start a worker process: {last}", KEEP_LOGS) from error


def await_ranks(
    thread: threading.Thread,
    begun: Path,
    speak: Callable[[str], None],
    limit: float = RANKS_SECONDS,
    late: float = LATE_SECONDS,
) -> None:
    """Waits until rank 0 of a run has begun, or the run has ended.

    Args:
        thread: runs Ray Train.
        begun: file that rank 0 writes first.
        speak: takes the sentence about a long wait.
        limit: seconds after which the wait fails.
        late: seconds after which the wait is said.

    Raises:
        ResourceError: at the limit.
    """
    deadline = time.monotonic() + limit
    with said_when_late("the workers of the run", late, speak):
        while thread.is_alive() and not begun.exists():
            if time.monotonic() >= deadline:
                raise ResourceError(
                    f"no worker of the run began within {limit:.0f} s{log_says()}",
                    f"the same command tries again; {KEEP_LOGS}",
                )
            thread.join(POLL_SECONDS)
