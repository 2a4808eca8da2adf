"""The log of a job as it is written, to the job's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from mgmrn.errors import ResourceError
from pipeline.jobs.job import Job
from pipeline.jobs.server import JobServer
from pipeline.redaction import redact

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 120.0
"""A job server that is away for longer, as while a head is replaced, is given up."""


def follow(server: JobServer, submission_id: str, write: Callable[[str], None]) -> Job:
    """Writes a job's log from its first line on until the job is over, and answers with what became of it.

    A connection that breaks is made anew; nothing is written twice.

    Args:
        server: where the job is.
        submission_id: the job's.
        write: takes text as it comes.

    Raises:
        ResourceError: when the job server stays away.
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
            if time.monotonic() - away_since > PATIENCE_SECONDS:
                raise
        else:
            if job.is_over:
                return job
        time.sleep(POLL_SECONDS)


async def _write_rest(server: JobServer, submission_id: str, written: int, write: Callable[[str], None]) -> int:
    """Writes what comes after so many characters; answers with how many have been written in all."""
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
        # Whether the job is over, or the server is away, is asked next.
        pass
    return written
