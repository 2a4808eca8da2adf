"""The job server of a cluster: its jobs, their logs, and one sentence for each of its errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgmrn.errors import ResourceError, UserError
from pipeline.errors import ExitCode
from pipeline.redaction import redact

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
LOCAL_ADDRESS = "http://127.0.0.1:8265"
CONNECT_TIMEOUT_S = 10.0
POLL_S = 1.0
AWAY_TIMEOUT_S = 120.0
"""Seconds without an answer after which a followed job server is given up; replacing a head takes less."""

AUTH_MODE = "RAY_AUTH_MODE"
TOKEN_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = Path(".ray", "auth_token")
"""Below the home folder."""

OVER = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
PIPELINE_CODES = frozenset(int(code) for code in ExitCode)

VERB, NAME, CODE_SHA, CODE_DIRTY = "mgmrn.verb", "mgmrn.name", "mgmrn.code_sha", "mgmrn.code_dirty"
"""Keys of a job's metadata."""


@dataclass(frozen=True)
class Job:
    """One job of the server, without its environment, which may hold secrets."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    entrypoint: str
    message: str
    started: float | None
    """Seconds since 1970; None before the start."""
    ended: float | None
    driver_exit_code: int | None
    labels: Mapping[str, str]
    """Metadata that the sender gave."""

    @property
    def is_over(self) -> bool:
        """Whether the job has ended."""
        return self.status in OVER

    @property
    def exit_code(self) -> ExitCode:
        """The driver's exit code where it is one of the pipeline's; SOME_FAILED for a driver that was killed or stopped."""
        if self.status == "SUCCEEDED":
            return ExitCode.FINE
        code = self.driver_exit_code
        return ExitCode(code) if code in PIPELINE_CODES and code else ExitCode.SOME_FAILED

    def to_json(self) -> dict[str, Any]:
        """Serialise to the object that `--json` prints."""
        return {
            "submission_id": self.submission_id,
            "verb": self.labels.get(VERB),
            "name": self.labels.get(NAME),
            "status": self.status,
            "entrypoint": redact(self.entrypoint),
            "started": self.started,
            "ended": self.ended,
            "exit_code": int(self.exit_code) if self.is_over else None,
            "code_sha": self.labels.get(CODE_SHA),
            "code_dirty": self.labels.get(CODE_DIRTY),
        }


class JobServer:
    """One cluster's job server.

    Args:
        client: connected to it.
        address: like `http://HOST:8265`.

    Every method raises `ResourceError` where the server is away, and `UserError` where it refuses.
    """

    def __init__(self, client: JobSubmissionClient, address: str) -> None:
        self._client = client
        self.address = address

    @classmethod
    def connect(cls, address: str) -> JobServer:
        """Connect to a job server that accepts the user's token; fails within CONNECT_TIMEOUT_S."""
        address = _as_url(address)
        _check_answers(address)
        _use_token()
        # Ray's client prefers the environment, also $RAY_ADDRESS, which is no address of a job server, to its argument.
        os.environ[ADDRESS_VARIABLE] = address
        from ray.job_submission import JobSubmissionClient

        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with _translated(address):
            return cls(JobSubmissionClient(address), address)

    def jobs(self) -> list[Job]:
        """All jobs that were submitted since the cluster started, oldest first."""
        with _translated(self.address):
            found = self._client.list_jobs()
        return sorted((_job(one) for one in found if one.submission_id), key=lambda job: job.started or 0)

    def job(self, submission_id: str) -> Job:
        """One job by its id."""
        for job in (jobs := self.jobs()):
            if job.submission_id == submission_id:
                return job
        # What checks configs takes long to load; a name is seldom wrong.
        from pipeline.config.validation import nearest

        names = [job.submission_id for job in jobs]
        close = nearest(submission_id, names)
        hint = f"did you mean {close}?" if close else "`status` lists all jobs"
        raise UserError(f"there is no job '{submission_id}' on this cluster", self.address, hint)

    def submit(
        self, submission_id: str, entrypoint: str, runtime_env: Mapping[str, Any], labels: Mapping[str, str]
    ) -> None:
        """Send a job; Ray packs its `working_dir` less what `.rayignore` and `.gitignore` name.

        Raises:
            JobExistsError: when the server has a job of this id.
        """
        with _translated(self.address):
            try:
                self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=submission_id,
                    runtime_env=dict(runtime_env),
                    metadata=dict(labels),
                )
            except RuntimeError as error:
                if f"{submission_id} already exists" in str(error):
                    raise JobExistsError(f"there is a job {submission_id} already", self.address) from error
                raise

    def stop(self, submission_id: str) -> None:
        """Ask a job to end, which takes a while."""
        with _translated(self.address):
            self._client.stop_job(submission_id)

    def log(self, submission_id: str) -> str:
        """Output of a job so far."""
        with _translated(self.address):
            return str(self._client.get_job_logs(submission_id))

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        """Output of a job from its first line on, until job or connection end. Ray's exceptions are not translated."""
        async for lines in self._client.tail_job_logs(submission_id):
            yield lines


class JobExistsError(UserError):
    """The job server has a job of this id."""


def follow(server: JobServer, submission_id: str, write: Callable[[str], None]) -> Job:
    """Write a job's log from its first line on until the job has ended, and return the ended job.

    A broken connection is opened again; nothing is written twice.

    Args:
        server: the job's server.
        submission_id: id of the job.
        write: takes text as it comes, without secrets.

    Raises:
        ResourceError: when the job server is away for AWAY_TIMEOUT_S.
    """
    written = 0
    away_since: float | None = None
    while True:
        try:
            written = asyncio.run(_write_rest(server, submission_id, written, write))
            job = server.job(submission_id)
            away_since = None
        except ResourceError:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > AWAY_TIMEOUT_S:
                raise
        else:
            if job.is_over:
                return job
        time.sleep(POLL_S)


async def _write_rest(server: JobServer, submission_id: str, written: int, write: Callable[[str], None]) -> int:
    """Write the log after its first `written` characters; returns the number of characters that were written in all."""
    import aiohttp

    position = 0
    try:
        async for text in server.tail(submission_id):
            fresh = text[max(written - position, 0) :]
            position += len(text)
            if fresh:
                write(redact(fresh))
            written = max(written, position)
    except (aiohttp.ClientError, OSError, RuntimeError):
        # The caller asks next whether the job has ended or the server is away.
        pass
    return written


def _as_url(address: str) -> str:
    if "://" not in address:
        return f"http://{address}".rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"'{redact(address)}' is no address of a job server", "--address", "it is like http://HOST:8265"
        )
    return address.rstrip("/")


def _check_answers(address: str) -> None:
    """Check that the address answers, with whatever status: Ray's own client has no time limit."""
    import http.client
    import urllib.error
    import urllib.request

    # No proxy: the address is used as it was given.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{address}/api/version", timeout=CONNECT_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ResourceError(
            f"no job server answers at {redact(address)} ({getattr(error, 'reason', error)})",
            "name the head's with --address http://HOST:8265, or start the cluster",
        ) from error


def _use_token() -> None:
    """Turn on token authentication where a token is set and no mode is."""
    given = any(os.environ.get(name) for name in TOKEN_SOURCES) or (Path.home() / TOKEN_FILE).is_file()
    if given:
        os.environ.setdefault(AUTH_MODE, "token")


_TOKEN_HINT = f"set {AUTH_MODE}=token, and {TOKEN_SOURCES[0]}, or {TOKEN_SOURCES[1]} to a file with it, or put it into ~/{TOKEN_FILE}"


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
    """Translate what Ray's client and its HTTP library raise."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as error:
        wrong = str(error).startswith("Authentication failed")
        message = "the token is not this cluster's" if wrong else "the cluster asks for a token, and none was sent"
        raise UserError(message, address, _TOKEN_HINT) from error
    except (ConnectionError, RequestException) as error:
        raise ResourceError(f"the job server at {address} went away", "try again when the cluster is up") from error
    except RuntimeError as error:
        reason = redact((str(error).strip() or type(error).__name__).splitlines()[-1]).rstrip(".")
        raise UserError(f"the job server refuses: {reason}", address) from error


def _job(details: JobDetails) -> Job:
    return Job(
        submission_id=details.submission_id,
        status=str(details.status.value),
        entrypoint=details.entrypoint,
        message=details.message or "",
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        driver_exit_code=details.driver_exit_code,
        labels=details.metadata or {},
    )
