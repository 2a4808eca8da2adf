"""Submission of a command: sent once per command and code, however often it is given.

What a job is sent with (arguments, environment, metadata) is kept by the cluster, shown to all users of its job server, and inherited
by every worker, so it holds no secret. The driver takes the credentials of the tracking server and of databases from the environment of the
cluster's head (`MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_URI` as a whole; on Kubernetes a secret)
or from `~/.mlflow/credentials` there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from mgmrn.errors import UserError
from pipeline.job_environment import CODE_STATE
from pipeline.jobs.server import CODE_DIRTY, CODE_SHA, NAME, VERB, Job, JobExistsError, JobServer
from pipeline.redaction import SECRET_NAME, redact
from pipeline.tracking.environment import NO_GIT, GitState, git_state

CHECKOUT = Path(__file__).resolve().parents[2]
RUNTIME_ENV = Path("cluster", "runtime_env.yaml")
PACKAGES = ("mgmrn", "pipeline")
"""Folders of the checkout that a job runs."""
STATE_LIMIT = 64_000
"""Characters of the code's state in a job's metadata: Linux limits one environment variable, which holds all of it, to 128 KiB."""


@dataclass(frozen=True)
class Task:
    """A checked command for the cluster."""

    verb: str
    name: str
    """Of the experiment, search or ablation."""
    arguments: tuple[str, ...]
    """Arguments of the verb, as the job gets them."""
    files: tuple[str, ...]
    """Config files that the job must find in its working folder."""
    identity: str
    """sha256 of the resolved config and of all arguments that decide what is run, and where its results go."""

    @property
    def entrypoint(self) -> str:
        """The driver's command line, which all users of the job server can read."""
        return shlex.join(["python", "-m", "pipeline", self.verb, *self.arguments])

    def submission_id(self, code: str) -> str:
        """Id of the job, like `mgmrn-train-cub100-1f0c9a2e`: equal for the same command with the same code.

        Args:
            code: digest of the code.
        """
        digest = hashlib.sha256(f"{self.identity} {code}".encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.name)[:40]
        return f"mgmrn-{self.verb}-{name}-{digest}"


@dataclass(frozen=True)
class Decision:
    """What a command leads to, given the jobs of the cluster."""

    action: Literal["send", "attach", "done"]
    submission_id: str
    earlier: str | None
    """Status of the last attempt before one that is to be sent."""


def decide(wanted: str, jobs: Sequence[Job], *, again: bool) -> Decision:
    """Decide between sending a job and following one that exists.

    The job server accepts an id once, even when that job failed. So the first attempt has the id itself, the second `ID-2`, and so
    on; the last attempt decides. One that waits or runs is followed. One that succeeded is not repeated. One that failed or was stopped
    is followed by the next attempt, which goes on from its checkpoints.

    Args:
        wanted: id of the command.
        jobs: all jobs of the server.
        again: send the next attempt also after one that succeeded.
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
    """Number of a job among the attempts at a command; None for a job of another command."""
    if submission_id == wanted:
        return 1
    number = submission_id.removeprefix(f"{wanted}-")
    return int(number) if number != submission_id and number.isdecimal() else None


def submit(task: Task, server: JobServer, *, again: bool, say: Callable[[str], None]) -> Decision:
    """Send command and code, unless the cluster has, or has done, the same job.

    Args:
        task: the command.
        server: the cluster's job server.
        again: as for `decide`.
        say: takes a line for the user.

    Raises:
        UserError: when the command is not given in the checkout's folder, or the job would lack a config file.
    """
    if Path.cwd().resolve() != CHECKOUT:
        raise UserError(
            f"jobs are sent from the folder of the checkout, {CHECKOUT}", "working folder", "go there first"
        )
    runtime_env = read_runtime_env(CHECKOUT / RUNTIME_ENV)
    for file in task.files:
        _check_is_sent(file)
    wanted = task.submission_id(code_digest(CHECKOUT))
    decision = decide(wanted, server.jobs(), again=again)
    if decision.action != "send":
        return decision
    state = git_state(CHECKOUT)
    say(_about_code(state))
    labels = {VERB: task.verb, NAME: task.name, CODE_SHA: state.sha, CODE_DIRTY: str(state.dirty).lower()}
    labels[CODE_STATE] = _state_label(state, say)
    complete = {**runtime_env, "working_dir": str(CHECKOUT)}
    try:
        server.submit(decision.submission_id, task.entrypoint, complete, labels)
    except JobExistsError:
        return decide(wanted, server.jobs(), again=False)
    say(f"{decision.submission_id} was sent to {server.address}")
    return decision


def code_digest(checkout: Path) -> str:
    """sha256 of names and contents of all files of the packages that a job runs; its configs are part of the task."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((checkout / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                content = path.read_bytes()
                digest.update(f"{path.relative_to(checkout).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def read_runtime_env(file: Path) -> dict[str, Any]:
    """Runtime environment of the driver.

    Raises:
        UserError: when the file is missing, is no mapping, or holds what looks like a secret.
    """
    try:
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the runtime environment: {str(error).splitlines()[0]}", str(file)) from error
    if not isinstance(value, dict):
        raise UserError("a runtime environment is a mapping", str(file))
    for name in value.get("env_vars") or {}:
        if SECRET_NAME.search(str(name)):
            hint = "set it in the environment of the cluster's head"
            raise UserError(f"env_vars.{name} would be shown to all users of the job server", str(file), hint)
    return value


def _check_is_sent(file: str) -> None:
    """Refuse a config file that `.rayignore` leaves behind.

    Args:
        file: as it was named, relative to the checkout.

    Raises:
        UserError: when it stands neither at the top of the checkout nor in a package.
    """
    parts = Path(os.path.normpath(file)).parts
    at_top = len(parts) == 1 and not parts[0].startswith(".")
    if not (CHECKOUT / file).is_file() or not (at_top or parts[0] in PACKAGES):
        raise UserError(
            f"{file} is not among the files that are sent to the cluster",
            hint="put it at the top of the checkout or below pipeline/config/configs, and name it from there",
        )


def _state_label(state: GitState, say: Callable[[str], None]) -> str:
    """Commit and uncommitted changes, for the runs of the job; without the changes where they are too long."""
    label = replace(state, diff=redact(state.diff)).to_label()
    if len(label) <= STATE_LIMIT:
        return label
    say("warning: the uncommitted changes are too long to be kept with the job's runs; commit them to keep them")
    return replace(state, diff="", untracked=()).to_label()


def _about_code(state: GitState) -> str:
    if state.sha == NO_GIT:
        return "this is no git checkout: the job's runs cannot say of which commit they are"
    if state.dirty:
        files = "1 file differs" if state.changed_files == 1 else f"{state.changed_files} files differ"
        return f"warning: {files} from commit {state.sha[:10]}; the job gets the code as it is, and its runs are marked dirty"
    return f"the code is commit {state.sha[:10]}"
