"""The job server of a cluster: its jobs, their logs, and one sentence for each of its errors."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mgmrn.errors import ResourceError, UserError
from pipeline.errors import ExitCode
from pipeline.redaction import redact, redact_address

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
LOCAL_ADDRESS = "http://127.0.0.1:8265"
CONNECT_TIMEOUT_S = 10.0
POLL_S = 1.0
AWAY_TIMEOUT_S = 120.0
"""Seconds without an answer after which following a job ends; replacing a head takes less."""

AUTH_MODE = "RAY_AUTH_MODE"
TOKEN_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = Path(".ray", "auth_token")
"""Path below the home folder."""
_TOKEN_HINT = f"set {AUTH_MODE}=token, and {TOKEN_SOURCES[0]}, or {TOKEN_SOURCES[1]} to a file with it, or put it into ~/{TOKEN_FILE}"

VERB, NAME, CODE_SHA, CODE_DIRTY = "mgmrn.verb", "mgmrn.name", "mgmrn.code_sha", "mgmrn.code_dirty"
"""Keys of a job's metadata."""


def exit_code(job: JobDetails) -> ExitCode:
    """The driver's exit code where it is one of the pipeline's; SOME_FAILED for a driver that was killed or stopped."""
    if job.status == "SUCCEEDED":
        return ExitCode.FINE
    code = job.driver_exit_code
    return ExitCode(code) if code and code in set(ExitCode) else ExitCode.SOME_FAILED


def job_to_json(job: JobDetails) -> dict[str, Any]:
    """Object that `--json` prints, without the job's environment, which may hold secrets."""
    labels = job.metadata or {}
    return {
        "submission_id": job.submission_id,
        "verb": labels.get(VERB),
        "name": labels.get(NAME),
        "status": str(job.status),
        "entrypoint": redact(job.entrypoint),
        "started": job.start_time / 1000 if job.start_time else None,
        "ended": job.end_time / 1000 if job.end_time else None,
        "exit_code": int(exit_code(job)) if job.status.is_terminal() else None,
        "code_sha": labels.get(CODE_SHA),
        "code_dirty": labels.get(CODE_DIRTY),
    }


class JobExistsError(UserError):
    """The job server has a job of this id."""


class JobServer:
    """Job server at an address like `http://HOST:8265`; methods raise `ResourceError` when it is away, `UserError` when it refuses."""

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
        with _translated(redact_address(address)):
            return cls(JobSubmissionClient(address), redact_address(address))

    def jobs(self) -> dict[str, JobDetails]:
        with _translated(self.address):
            found = sorted(self._client.list_jobs(), key=lambda job: job.start_time or 0)
        return {job.submission_id: job for job in found if job.submission_id}

    def job(self, submission_id: str) -> JobDetails:
        jobs = self.jobs()
        if submission_id in jobs:
            return jobs[submission_id]
        # Takes long to load.
        from pipeline.config.validation import did_you_mean

        hint = did_you_mean(submission_id, list(jobs)) or "`status` lists all jobs"
        raise UserError(f"there is no job '{submission_id}' on this cluster", self.address, hint)

    def submit(
        self, submission_id: str, entrypoint: str, runtime_env: Mapping[str, Any], labels: Mapping[str, str]
    ) -> None:
        """Send a job, whose `working_dir` Ray packs less what `.rayignore` names; `JobExistsError` when the server has one of this id."""
        job = {"entrypoint": entrypoint, "runtime_env": dict(runtime_env), "metadata": dict(labels)}
        with _translated(self.address):
            try:
                self._client.submit_job(submission_id=submission_id, **job)
            except RuntimeError as error:
                if f"{submission_id} already exists" in str(error):
                    raise JobExistsError(f"there is a job {submission_id} already", self.address) from error
                raise

    def stop(self, submission_id: str) -> None:
        with _translated(self.address):
            self._client.stop_job(submission_id)

    def log(self, submission_id: str) -> str:
        with _translated(self.address):
            return str(self._client.get_job_logs(submission_id))

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """Output of a job from its first line on, until job or connection end. Ray's exceptions are not translated."""
        return self._client.tail_job_logs(submission_id)


def follow(server: JobServer, submission_id: str, write: Callable[[str], None]) -> JobDetails:
    """Write a job's log without secrets until the job has ended; a `ResourceError` when the server is away for AWAY_TIMEOUT_S."""
    written = 0
    last_answer = time.monotonic()
    while True:
        written = asyncio.run(_write_rest(server, submission_id, written, write))
        try:
            job = server.job(submission_id)
            last_answer = time.monotonic()
            if job.status.is_terminal():
                return job
        except ResourceError:
            if time.monotonic() - last_answer > AWAY_TIMEOUT_S:
                raise
        time.sleep(POLL_S)


async def _write_rest(server: JobServer, submission_id: str, written: int, write: Callable[[str], None]) -> int:
    """Write the log after its first `written` characters; returns the number of characters that were written in all."""
    import aiohttp

    position = 0
    # `follow` asks next whether the job has ended or the server is away.
    with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError):
        async for text in server.tail(submission_id):
            if fresh := text[max(written - position, 0) :]:
                write(redact(fresh))
            position += len(text)
            written = max(written, position)
    return written


def _as_url(address: str) -> str:
    url = address if "://" in address else f"http://{address}"
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url.rstrip("/")
    message = f"'{redact_address(address)}' is no address of a job server"
    raise UserError(message, "--address", "it is like http://HOST:8265")


def _check_answers(address: str) -> None:
    """Check that the address answers, with any status: Ray's own client has no time limit."""
    # No proxy: the address is used as it was given.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{address}/api/version", timeout=CONNECT_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        message = f"no job server answers at {redact_address(address)} ({getattr(error, 'reason', error)})"
        raise ResourceError(message, "name the head's with --address http://HOST:8265, or start the cluster") from error


def _use_token() -> None:
    """Turn on token authentication where a token is set and no mode is."""
    if any(os.environ.get(name) for name in TOKEN_SOURCES) or (Path.home() / TOKEN_FILE).is_file():
        os.environ.setdefault(AUTH_MODE, "token")


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
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
