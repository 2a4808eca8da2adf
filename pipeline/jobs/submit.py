"""Submission of a command: sent once per command and code, however often it is given.

All users of a job server can read a job's arguments, environment and metadata: credentials are the head's, from its environment or files.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from mgmrn.errors import UserError
from mgmrn.reading import read_text
from pipeline.config.identity import REPOSITORY
from pipeline.job_environment import CODE_STATE
from pipeline.jobs.server import CODE_DIRTY, CODE_SHA, NAME, VERB, JobExistsError, JobServer
from pipeline.redaction import SECRET_NAME, redact
from pipeline.tracking.environment import NO_GIT, GitState, git_state

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

RUNTIME_ENV = Path("cluster", "runtime_env.yaml")
PACKAGES = ("mgmrn", "pipeline")
STATE_LIMIT = 64_000
"""Characters of the code's state in a job's metadata: Linux limits one environment variable, which holds all of it, to 128 KiB."""


@dataclass(frozen=True)
class Task:
    """A checked command for the cluster."""

    verb: str
    name: str
    """Name of the experiment, search or ablation."""
    arguments: tuple[str, ...]
    files: tuple[str, ...]
    """Config files that the job must find in its working folder."""
    identity: str
    """sha256 of the resolved config and of all arguments that decide what is run, and where its results go."""

    @property
    def entrypoint(self) -> str:
        """Command line of the driver, which all users of the job server can read."""
        return shlex.join(["python", "-m", "pipeline", self.verb, *self.arguments])

    def submission_id(self, code: str) -> str:
        """Id of the job, like `mgmrn-train-cub100-1f0c9a2e`: equal for the same command with the same digest of the code."""
        digest = hashlib.sha256(f"{self.identity} {code}".encode()).hexdigest()[:8]
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.name)[:40]
        return f"mgmrn-{self.verb}-{name}-{digest}"


@dataclass(frozen=True)
class Decision:
    """What to do for a command; `earlier` is the status of the attempt before one that is to be sent."""

    action: Literal["send", "attach", "done"]
    submission_id: str
    earlier: str | None


def decide(wanted: str, jobs: Mapping[str, JobDetails], *, again: bool) -> Decision:
    """Decide between sending a job and following one that exists, by the last attempt; one that succeeded is repeated only with `again`.

    The job server accepts an id once, even when that job failed, so the second attempt is `ID-2`, and so on.
    """
    pattern = re.compile(rf"{re.escape(wanted)}(?:-(\d+))?")
    attempts = {int(found[1] or 1): name for name in jobs if (found := pattern.fullmatch(name))}
    if not attempts:
        return Decision("send", wanted, None)
    number = max(attempts)
    status = jobs[attempts[number]].status
    if not status.is_terminal():
        return Decision("attach", attempts[number], None)
    if status == "SUCCEEDED" and not again:
        return Decision("done", attempts[number], None)
    return Decision("send", f"{wanted}-{number + 1}", str(status))


def submit(task: Task, server: JobServer, *, again: bool, say: Callable[[str], None]) -> Decision:
    """Send command and code, unless the cluster runs, or has run, the same job; `say` takes lines for the user."""
    if Path.cwd().resolve() != REPOSITORY:
        message = f"jobs are sent from the folder of the checkout, {REPOSITORY}"
        raise UserError(message, "working folder", "go there first")
    runtime_env = {**read_runtime_env(REPOSITORY / RUNTIME_ENV), "working_dir": str(REPOSITORY)}
    for file in task.files:
        _check_is_sent(file)
    wanted = task.submission_id(code_digest(REPOSITORY))
    decision = decide(wanted, server.jobs(), again=again)
    if decision.action != "send":
        return decision
    state = git_state(REPOSITORY)
    say(_about_code(state))
    label = replace(state, diff=redact(state.diff)).to_label()
    if len(label) > STATE_LIMIT:
        say("warning: the uncommitted changes are too long to be kept with the job's runs; commit them to keep them")
        label = replace(state, diff="", untracked=()).to_label()
    labels = {VERB: task.verb, NAME: task.name, CODE_STATE: label}
    labels |= {CODE_SHA: state.sha, CODE_DIRTY: str(state.dirty).lower()}
    try:
        server.submit(decision.submission_id, task.entrypoint, runtime_env, labels)
    except JobExistsError:
        return decide(wanted, server.jobs(), again=False)
    say(f"{decision.submission_id} was sent to {server.address}")
    return decision


def code_digest(checkout: Path) -> str:
    """sha256 of names and contents of all files of the packages that a job runs; its configs are part of the task."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (checkout / package).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(checkout).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def read_runtime_env(file: Path) -> dict[str, Any]:
    """Read the runtime environment of the driver, which may set no variable whose name is that of a secret."""
    text = read_text(file, "runtime environment", "check the path")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the runtime environment is no YAML: {str(error).splitlines()[0]}", str(file)) from error
    if not isinstance(value, dict):
        raise UserError("a runtime environment is a mapping", str(file))
    if name := next(filter(SECRET_NAME.search, map(str, value.get("env_vars") or {})), None):
        hint = "set it in the environment of the cluster's head"
        raise UserError(f"env_vars.{name} would be shown to all users of the job server", str(file), hint)
    return value


def _check_is_sent(file: str) -> None:
    """Refuse a config file, named relative to the checkout, that is neither at its top nor in a package: `.rayignore` leaves it out."""
    parts = Path(os.path.normpath(file)).parts
    at_top = len(parts) == 1 and not parts[0].startswith(".")
    if not (REPOSITORY / file).is_file() or not (at_top or parts[0] in PACKAGES):
        hint = "put it at the top of the checkout or below pipeline/config/configs, and name it from there"
        raise UserError(f"{file} is not among the files that are sent to the cluster", hint=hint)


def _about_code(state: GitState) -> str:
    if state.sha == NO_GIT:
        return "this is no git checkout: the job's runs cannot record their commit"
    if not state.dirty:
        return f"the code is commit {state.sha[:10]}"
    files = "1 file differs" if state.changed_files == 1 else f"{state.changed_files} files differ"
    return f"warning: {files} from commit {state.sha[:10]}; the job runs the uncommitted code, and its runs are marked dirty"
