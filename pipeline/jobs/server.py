"""The job server of a cluster, and its answers in our words."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgmrn.errors import ResourceError, UserError
from pipeline.jobs.job import Job
from pipeline.redaction import redact

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
LOCAL_ADDRESS = "http://127.0.0.1:8265"
CONNECT_SECONDS = 10.0

AUTH_MODE = "RAY_AUTH_MODE"
TOKEN_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
TOKEN_FILE = Path(".ray", "auth_token")
"""Below the home folder."""


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
        """Looks whether a job server answers that takes our token, in seconds."""
        address = _as_url(address)
        _check_answers(address)
        _use_token()
        # Ray's client lets the environment (also $RAY_ADDRESS, which is no address of a job server) overrule what it is given.
        os.environ[ADDRESS_VARIABLE] = address
        from ray.job_submission import JobSubmissionClient

        for name in (
            "ray.dashboard.modules.dashboard_sdk",
            "ray.dashboard.modules.job.sdk",
            "ray._private.runtime_env",
        ):
            logging.getLogger(name).setLevel(logging.ERROR)
        with _in_our_words(address):
            return cls(JobSubmissionClient(address), address)

    def jobs(self) -> list[Job]:
        """All jobs that were submitted since the cluster started, oldest first."""
        with _in_our_words(self.address):
            found = self._client.list_jobs()
        return sorted((_job(one) for one in found if one.submission_id), key=lambda job: job.started or 0)

    def job(self, submission_id: str) -> Job:
        """One job."""
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
        """Sends a job, with the files that its `working_dir` names.

        Raises:
            JobExistsError: when somebody has sent one of this id in the meantime.
        """
        with _in_our_words(self.address):
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
        """Asks a job to end; it takes a while."""
        with _in_our_words(self.address):
            self._client.stop_job(submission_id)

    def log(self, submission_id: str) -> str:
        """What a job has printed up to now."""
        with _in_our_words(self.address):
            return str(self._client.get_job_logs(submission_id))

    async def tail(self, submission_id: str) -> AsyncIterator[str]:
        """What a job prints, from its first line on, until it ends or the connection does; raises as it comes."""
        async for lines in self._client.tail_job_logs(submission_id):
            yield lines


class JobExistsError(UserError):
    """The job server has a job of this id."""


def _as_url(address: str) -> str:
    if "://" not in address:
        return f"http://{address}".rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"'{redact(address)}' is no address of a job server", "--address", "it is like http://HOST:8265"
        )
    return address.rstrip("/")


def _check_answers(address: str) -> None:
    """A quick look, whatever the answer: Ray's own client waits for as long as the other end holds the line."""
    import http.client
    import urllib.error
    import urllib.request

    # No proxy: the address was given for what it is.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{address}/api/version", timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ResourceError(
            f"no job server answers at {redact(address)} ({getattr(error, 'reason', error)})",
            "name the head's with --address http://HOST:8265, or start the cluster",
        ) from error


def _use_token() -> None:
    """Ray's client sends a token only where the mode says so; who has set one means it to be sent."""
    given = any(os.environ.get(name) for name in TOKEN_SOURCES) or (Path.home() / TOKEN_FILE).is_file()
    if given:
        os.environ.setdefault(AUTH_MODE, "token")


_TOKEN_HINT = f"set {AUTH_MODE}=token, and {TOKEN_SOURCES[0]}, or {TOKEN_SOURCES[1]} to a file with it, or put it into ~/{TOKEN_FILE}"


@contextlib.contextmanager
def _in_our_words(address: str) -> Iterator[None]:
    """What Ray's client and its HTTP library raise, as a sentence."""
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
