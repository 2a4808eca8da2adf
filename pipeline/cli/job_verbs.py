"""The verbs that talk to a cluster's job server: `submit`, `status`, `logs`, `stop`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated

import typer

from pipeline.cli.options import Json
from pipeline.console import Console, duration, say
from pipeline.errors import ExitCode, TrackingError
from pipeline.interruption import Interruption
from pipeline.job_environment import SUBMISSION_TAG
from pipeline.jobs.server import ADDRESS_VARIABLE, LOCAL_ADDRESS, VERB, Job, JobServer, follow
from pipeline.redaction import redact

STOP_SECONDS = 45.0

jobs_app = typer.Typer()

Server = Annotated[
    str,
    typer.Option("--address", metavar="URL", envvar=ADDRESS_VARIABLE, help="Job server of the cluster."),
]
JobId = Annotated[str, typer.Argument(metavar="ID", help="As `submit` and `status` print it.")]


@jobs_app.command(context_settings={"allow_interspersed_args": False})
def submit(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(metavar="VERB", help="train, search or ablate.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="…", help="Of the verb, as it takes them here.")
    ] = None,
    address: Server = LOCAL_ADDRESS,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Send it, and do not follow its log.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Send it even if the same job has succeeded, as when its data has changed.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Run a verb as a job on a cluster. The same command with the same code is one job: it is followed, not sent again."""
    from pipeline.cli.job_task import read_task
    from pipeline.jobs.submit import submit as send

    console = Console(as_json)
    task = read_task(context, verb, arguments or [])
    server = JobServer.connect(address)
    decision = send(task, server, again=again, say=console.line)
    job = server.job(decision.submission_id)
    if decision.action == "done":
        console.line(f"{job.submission_id} has succeeded already; nothing was sent (--again sends it all the same)")
    elif decision.action == "attach":
        console.line(f"{job.submission_id} is on the cluster already; nothing was sent")
    elif decision.earlier is not None:
        console.line(f"an earlier attempt is {decision.earlier}; this one goes on from its checkpoints")
    if decision.action == "done" or no_wait:
        _show_result(job, decision.action, console)
        return ExitCode.FINE
    return _follow(server, job.submission_id, decision.action, console)


@jobs_app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="One job; without it, all of them.")] = None,
    address: Server = LOCAL_ADDRESS,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri", envvar="MLFLOW_TRACKING_URI", help="Tracking server, to tell which run each job leads."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the jobs of a cluster, the latest last."""
    console = Console(as_json)
    server = JobServer.connect(address)
    jobs = server.jobs() if job_id is None else [server.job(job_id)]
    runs = _launches(tracking_uri)
    console.table(["id", "verb", "status", "exit", "started", "took", "run"], [_row(job, runs) for job in jobs])
    shown = [job.to_json() | {"run_id": runs.get(job.submission_id)} for job in jobs]
    console.result({"jobs": shown, "address": server.address})


@jobs_app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job is over.")] = False,
    address: Server = LOCAL_ADDRESS,
    as_json: Json = False,
) -> int:
    """Print what a job has printed; with --follow, answer with the job's exit code."""
    console = Console(as_json)
    server = JobServer.connect(address)
    job = server.job(job_id)
    if follow:
        return _follow(server, job_id, "attach", console)
    text = redact(server.log(job_id))
    console.people.write(text)
    console.result({**job.to_json(), "log": text})
    return ExitCode.FINE


@jobs_app.command()
def stop(job_id: JobId, address: Server = LOCAL_ADDRESS, as_json: Json = False) -> int:
    """Interrupt a job as Ctrl-C would, and wait for its end; the same `submit` goes on from its checkpoints."""
    console = Console(as_json)
    server = JobServer.connect(address)
    job = server.job(job_id)
    if job.is_over:
        console.line(f"{job_id} is over already: {job.status}")
    else:
        server.stop(job_id)
        job = _wait_for_end(server, job_id)
        console.line(f"{job_id} is {job.status}")
    console.result(job.to_json())
    return ExitCode.FINE if job.is_over else ExitCode.SOME_FAILED


def _launches(tracking_uri: str | None) -> dict[str, str]:
    """Id of each launch's own run by submission id; empty without a tracking store that answers."""
    if tracking_uri is None:
        return {}
    from pipeline.tracking.store import TrackingStore

    try:
        tagged = TrackingStore.connect(tracking_uri).runs_of(("mgmrn/%",), f"tags.`{SUBMISSION_TAG}` LIKE 'mgmrn-%'")
    except TrackingError as error:
        say(f"which runs the jobs lead is not known: {error}")
        return {}
    return {run.tags[SUBMISSION_TAG]: run.run_id for run in reversed(tagged) if run.parent_run_id is None}


def _wait_for_end(server: JobServer, job_id: str) -> Job:
    deadline = time.monotonic() + STOP_SECONDS
    while not (job := server.job(job_id)).is_over and time.monotonic() < deadline:
        time.sleep(0.5)
    return job


def _follow(server: JobServer, job_id: str, action: str, console: Console) -> int:
    """Streams a job's log; Ctrl-C leaves the job alone."""

    def write(text: str) -> None:
        console.people.write(text)
        console.people.flush()

    try:
        job = follow(server, job_id, write)
    except Interruption as interruption:
        console.err.write(
            f"\nno longer following {job_id}, which goes on: `logs {job_id} --follow` comes back to it, `stop {job_id}` ends it\n"
        )
        return interruption.exit_code
    _show_result(job, action, console)
    return job.exit_code


def _show_result(job: Job, action: str, console: Console) -> None:
    took = f" after {_took(job)}" if job.is_over and job.started else ""
    console.line(f"{job.submission_id} is {job.status}{took}")
    if job.status == "FAILED" and job.driver_exit_code is None:
        # There is no log of a driver that could not be started.
        console.line(redact(job.message))
    console.result({**job.to_json(), "action": action})


def _row(job: Job, runs: Mapping[str, str]) -> list[str]:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started)) if job.started else "–"
    ended = str(int(job.exit_code)) if job.is_over else "–"
    run = runs.get(job.submission_id, "–")
    return [job.submission_id, job.labels.get(VERB, "–"), job.status, ended, started, _took(job), run]


def _took(job: Job) -> str:
    return "–" if job.started is None else duration((job.ended or time.time()) - job.started)
