"""Sending a job once, however often the command is given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mgmrn.errors import UserError
from pipeline.cli.job_task import Task
from pipeline.jobs.job import CODE_DIRTY, CODE_SHA, NAME, VERB, Decision, decide
from pipeline.jobs.package import Package, make_package
from pipeline.jobs.server import JobExistsError, JobServer
from pipeline.redaction import SECRET_NAME
from pipeline.tracking.environment import NO_GIT, GitState, git_state

CHECKOUT = Path(__file__).resolve().parents[2]
RUNTIME_ENV = Path("cluster", "runtime_env.yaml")


def submit(task: Task, server: JobServer, *, again: bool, say: Callable[[str], None]) -> Decision:
    """Sends the code and the command, unless the cluster has, or has done, the same job.

    How secrets get there: not through here. What a job is sent with (arguments, environment) is kept by the cluster, given to
    whoever may ask its job server, and inherited by every worker. The driver takes the credentials of the tracking server and of
    databases from the environment of the cluster's head (`MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or
    `MLFLOW_TRACKING_URI` as a whole; on Kubernetes a secret) or from `~/.mlflow/credentials` there. There is no option to pass one on.

    Args:
        task: checked.
        server: where to.
        again: as for `decide`.
        say: takes a line for the person who waits.

    Raises:
        UserError: when the command is not given in the checkout's folder, or the job would lack a config file.
    """
    if Path.cwd().resolve() != CHECKOUT:
        raise UserError(
            f"jobs are sent from the folder of the checkout, {CHECKOUT}", "working folder", "go there first"
        )
    runtime_env = read_runtime_env(CHECKOUT / RUNTIME_ENV)
    state = git_state(CHECKOUT)
    with tempfile.TemporaryDirectory() as folder:
        package = make_package(CHECKOUT, state, Path(folder))
        for file in task.files:
            package.check_holds(file)
        wanted = task.submission_id(package.digest)
        decision = decide(wanted, server.jobs(), again=again)
        if decision.action != "send":
            return decision
        say(_about_code(state))
        try:
            _send(task, server, decision, runtime_env, package, state)
        except JobExistsError:
            return decide(wanted, server.jobs(), again=False)
        say(f"{decision.submission_id} was sent to {server.address} with {package.kib} KiB of code")
    return decision


def read_runtime_env(file: Path) -> dict[str, Any]:
    """What the driver starts with.

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
            raise UserError(f"env_vars.{name} would be shown to whoever may see the job", str(file), hint)
    return value


def _send(
    task: Task,
    server: JobServer,
    decision: Decision,
    runtime_env: Mapping[str, Any],
    package: Package,
    state: GitState,
) -> None:
    labels = {VERB: task.verb, NAME: task.name, CODE_SHA: state.sha, CODE_DIRTY: str(state.dirty).lower()}
    complete = {**runtime_env, "working_dir": str(package.file)}
    server.submit(decision.submission_id, task.entrypoint, complete, labels)


def _about_code(state: GitState) -> str:
    if state.sha == NO_GIT:
        return "this is no git checkout: the job's runs cannot say of which commit they are"
    if state.dirty:
        files = "1 file differs" if state.changed_files == 1 else f"{state.changed_files} files differ"
        return f"warning: {files} from commit {state.sha[:10]}; the job gets the code as it is, and its runs are marked dirty"
    return f"the code is commit {state.sha[:10]}"
