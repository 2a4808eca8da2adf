"""A job as the job server has it, and which job a command means: a new one, one that is on, or one that is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ExitCode
from pipeline.redaction import redact

OVER = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
PIPELINE_CODES = frozenset(int(code) for code in ExitCode)

VERB, NAME, CODE_SHA, CODE_DIRTY = "mgmrn.verb", "mgmrn.name", "mgmrn.code_sha", "mgmrn.code_dirty"
"""Keys of what a job says of itself."""


@dataclass(frozen=True)
class Job:
    """One submission; nothing of its environment, which may hold secrets."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    entrypoint: str
    message: str
    started: float | None
    """Seconds since 1970."""
    ended: float | None
    driver_exit_code: int | None
    labels: Mapping[str, str]
    """What the sender said of it."""

    @property
    def is_over(self) -> bool:
        """Whether it has come to an end."""
        return self.status in OVER

    @property
    def exit_code(self) -> ExitCode:
        """The driver's own where it is one of ours; a driver that was killed or stopped has failed."""
        if self.status == "SUCCEEDED":
            return ExitCode.FINE
        code = self.driver_exit_code
        return ExitCode(code) if code in PIPELINE_CODES and code else ExitCode.SOME_FAILED

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
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


@dataclass(frozen=True)
class Decision:
    """What a command comes to, given the jobs that there are."""

    action: Literal["send", "attach", "done"]
    submission_id: str
    earlier: str | None
    """Status of the last attempt before one that is to be sent."""


def decide(wanted: str, jobs: Sequence[Job], *, again: bool) -> Decision:
    """Which job a command means.

    The job server takes no id twice, not even that of a job that failed. So the first attempt is called by the id itself, the
    second `ID-2`, and so on; what is looked at is the last. One that is waiting or running is the command's job already. One that
    succeeded needs no other. One that failed or was stopped is followed by the next attempt, which goes on from its checkpoints.

    Args:
        wanted: id of the command.
        jobs: of the job server.
        again: sends the next attempt also after one that succeeded.
    """
    attempts = {attempt: job for job in jobs if (attempt := _attempt(wanted, job.submission_id)) is not None}
    if not attempts:
        return Decision("send", wanted, None)
    number = max(attempts)
    last = attempts[number]
    if not last.is_over:
        return Decision("attach", last.submission_id, None)
    if last.status == "SUCCEEDED" and not again:
        return Decision("done", last.submission_id, None)
    return Decision("send", f"{wanted}-{number + 1}", last.status)


def _attempt(wanted: str, submission_id: str) -> int | None:
    """The number of a job among the attempts at a command; None for a job of another one."""
    if submission_id == wanted:
        return 1
    number = submission_id.removeprefix(f"{wanted}-")
    return int(number) if number != submission_id and number.isdecimal() else None
