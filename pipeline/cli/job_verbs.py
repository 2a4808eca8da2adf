"""Verbs of jobs on a cluster: `submit`, `status`, `logs`, `stop`. A job's command is checked before anything is sent."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgmrn.errors import UserError
from pipeline.cli.ablation_verbs import load_grid_file
from pipeline.cli.options import Json, check_outlasts_job, parse_seeds
from pipeline.console import Console, duration, option, say, shell_command
from pipeline.errors import ExitCode, TrackingError
from pipeline.interruption import Interruption
from pipeline.job_environment import SUBMISSION_TAG
from pipeline.jobs.server import ADDRESS_VARIABLE, LOCAL_ADDRESS, JobServer, exit_code, follow, job_to_json
from pipeline.redaction import redact, redact_address

if TYPE_CHECKING:
    from pydantic import BaseModel
    from ray.job_submission import JobDetails

    from pipeline.jobs.submit import Task

STOP_SECONDS = 45.0
NOT_IN_IDENTITY = {"address", "as_json", "experiment", "overrides", "name", "benchmarks"}
"""Parameters that do not change what is run, or that the identity replaces by the resolved config."""
PLACES = frozenset({"storage", "data_root", "tracking_uri", "study_storage"})

jobs_app = typer.Typer()

Content = tuple[str, "BaseModel", tuple[str, ...]]
"""Name and resolved config of a verb's arguments, and the configs that they name: two spellings of one config are the same job."""
Server = Annotated[str, typer.Option("--address", metavar="URL", envvar=ADDRESS_VARIABLE, help="Job server to use.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="Id that `submit` and `status` print.")]


@jobs_app.command(context_settings={"allow_interspersed_args": False})
def submit(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(metavar="VERB", help="train, search or ablate.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="…", help="Arguments of the verb.")] = None,
    address: Server = LOCAL_ADDRESS,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Send the job without following its log.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Send the job even if it has succeeded.")] = False,
    as_json: Json = False,
) -> int:
    """Run a verb as a job on a cluster. The same command with the same code is one job: it is followed, not sent again."""
    from pipeline.jobs.submit import submit as send

    console = Console(as_json)
    task = read_task(context, verb, arguments or [])
    server = JobServer.connect(address)
    decision = send(task, server, again=again, say=console.line)
    name = decision.submission_id
    if decision.action == "done":
        console.line(f"{name} has succeeded already; nothing was sent (--again sends it all the same)")
    elif decision.action == "attach":
        console.line(f"{name} is on the cluster already; nothing was sent")
    elif decision.earlier is not None:
        console.line(f"an earlier attempt is {decision.earlier}; this one goes on from its checkpoints")
    if decision.action == "done" or no_wait:
        _show_result(server.job(name), decision.action, console)
        return ExitCode.FINE
    return _follow(server, name, decision.action, console)


@jobs_app.command()
def status(
    job_id: Annotated[str | None, typer.Argument(metavar="ID", help="One job; without it, all of them.")] = None,
    address: Server = LOCAL_ADDRESS,
    tracking_uri: Annotated[
        str | None, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Shows the runs of jobs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the jobs of a cluster, the latest last."""
    console = Console(as_json)
    server = JobServer.connect(address)
    jobs = server.jobs() if job_id is None else {job_id: server.job(job_id)}
    runs = _launches(tracking_uri)
    shown, rows = [], []
    for name, job in jobs.items():
        one = job_to_json(job) | {"run_id": runs.get(name)}
        shown.append(one)
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["started"])) if one["started"] else None
        columns = (one["verb"], one["status"], one["exit_code"], started, _took(job), one["run_id"])
        rows.append([one["submission_id"], *("–" if column is None else str(column) for column in columns)])
    console.table(["id", "verb", "status", "exit", "started", "took", "run"], rows)
    console.result({"jobs": shown, "address": server.address})


@jobs_app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job is over.")] = False,
    address: Server = LOCAL_ADDRESS,
    as_json: Json = False,
) -> int:
    """Print the log of a job; with --follow, until its end, and exit with the job's exit code."""
    console = Console(as_json)
    server = JobServer.connect(address)
    job = server.job(job_id)
    if follow:
        return _follow(server, job_id, "attach", console)
    text = redact(server.log(job_id))
    console.people.write(text)
    console.result({**job_to_json(job), "log": text})
    return ExitCode.FINE


@jobs_app.command()
def stop(job_id: JobId, address: Server = LOCAL_ADDRESS, as_json: Json = False) -> int:
    """Interrupt a job as Ctrl-C would, and wait for its end; the same `submit` goes on from its checkpoints."""
    console = Console(as_json)
    server = JobServer.connect(address)
    job = server.job(job_id)
    if job.status.is_terminal():
        console.line(f"{job_id} is over already: {job.status}")
    else:
        server.stop(job_id)
        deadline = time.monotonic() + STOP_SECONDS
        while not (job := server.job(job_id)).status.is_terminal() and time.monotonic() < deadline:
            time.sleep(0.5)
        console.line(f"{job_id} is {job.status}")
    console.result(job_to_json(job))
    return ExitCode.FINE if job.status.is_terminal() else ExitCode.SOME_FAILED


def _launches(tracking_uri: str | None) -> dict[str, str]:
    """Id of each launch's own run by submission id; empty without a tracking store that answers."""
    if tracking_uri is None:
        return {}
    from pipeline.tracking.store import TrackingStore

    try:
        wanted = f"tags.`{SUBMISSION_TAG}` LIKE 'mgmrn-%' and tags.`mgmrn.kind` != 'run'"
        tagged = TrackingStore.open(tracking_uri).runs_of(("mgmrn/%",), wanted)
    except (TrackingError, UserError) as error:
        say(f"the runs of the jobs are not known: {error}")
        return {}
    return {run.tags[SUBMISSION_TAG]: run.run_id for run in reversed(tagged) if run.parent_run_id is None}


def _follow(server: JobServer, job_id: str, action: str, console: Console) -> int:
    """Stream a job's log; Ctrl-C leaves the job alone."""

    def write(text: str) -> None:
        console.people.write(text)
        console.people.flush()

    try:
        job = follow(server, job_id, write)
    except Interruption as interruption:
        there = option("--address", server.address, LOCAL_ADDRESS, ADDRESS_VARIABLE)
        come_back, end = shell_command("logs", job_id, "--follow", *there), shell_command("stop", job_id, *there)
        console.err.write(f"\n{job_id} goes on: `{come_back}` follows it again, `{end}` ends it\n")
        return interruption.exit_code
    _show_result(job, action, console)
    return exit_code(job)


def _show_result(job: JobDetails, action: str, console: Console) -> None:
    took = f" after {_took(job)}" if job.status.is_terminal() and job.start_time else ""
    console.line(f"{job.submission_id} is {job.status}{took}")
    if job.status == "FAILED" and job.driver_exit_code is None:  # The driver did not start and has no log.
        console.line(redact(job.message or ""))
    console.result({**job_to_json(job), "action": action})


def _took(job: JobDetails) -> str | None:
    if job.start_time is None:
        return None
    return duration((job.end_time or 1000 * time.time()) / 1000 - job.start_time / 1000)


def read_task(parent: typer.Context, verb: str, arguments: Sequence[str]) -> Task:
    """Parse a verb's arguments by its own options, those from the environment included, and check its configs, places and secrets."""
    from pipeline.jobs.submit import Task

    if verb not in _CONTENTS:
        raise UserError(f"'{verb}' does not run as a job", "VERB", f"submit one of {', '.join(_CONTENTS)}")
    root = parent.find_root()
    command = root.command.get_command(root, verb)  # type: ignore[attr-defined]
    context = command.make_context(verb, list(arguments), parent=root)
    if context.params["address"] is not None:
        hint = f"name the cluster's job server before the verb: submit --address http://HOST:8265 {verb} …"
        raise UserError(f"a job of {verb} runs on the cluster that it is sent to", "--address", hint)
    complete = (*arguments, *_from_environment(context))
    for argument in complete:
        if redact_address(argument) != argument:
            message = f"{redact_address(argument)} holds a secret, which all users of the job server could read"
            variables = (
                "MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; MGMRN_STUDY_STORAGE"
            )
            hint = f"set it in the environment of the cluster's head ({variables}), and leave it out here"
            raise UserError(message, hint=hint)
    name, config, configs = _CONTENTS[verb](context.params)
    others = {name: value for name, value in context.params.items() if name not in NOT_IN_IDENTITY}
    identity = json.dumps([verb, name, config.model_dump(mode="json"), others], sort_keys=True, default=str)
    files = tuple(one for one in configs if one.endswith((".yaml", ".yml")))
    return Task(verb, name, complete, files, hashlib.sha256(identity.encode()).hexdigest())


def _from_environment(context: typer.Context) -> list[str]:
    """Options that the environment sets here; refuses places that would go with the job, but for defaults that the head may replace."""
    added: list[str] = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None:
            continue
        value, variable = context.params[parameter.name or ""], getattr(parameter, "envvar", None)
        if parameter.name in PLACES and (source.name != "DEFAULT" or variable is None):
            check_outlasts_job(value, parameter.opts[0], variable)
        if source.name == "ENVIRONMENT":
            added += [parameter.opts[0], str(value)]
    return added


def _train(params: Mapping[str, Any]) -> Content:
    from pipeline.config.compose import load_experiment
    from pipeline.train.placement import check_gpus, parse_workers

    if params["seeds"] is not None:
        parse_seeds(params["seeds"])
    composed = load_experiment(params["experiment"], params["overrides"] or [])
    workers = parse_workers(params["workers"])
    workers.check_shares(composed.config)
    check_gpus(params["gpus_per_worker"], workers.most)
    return composed.name, composed.config, (params["experiment"],)


def _search(params: Mapping[str, Any]) -> Content:
    from pipeline.search.config import load_search
    from pipeline.search.space import Space

    file = load_search(params["name"])
    Space(file)
    return file.name, file.config, (params["name"], file.config.base, *file.config.benchmarks)


def _ablate(params: Mapping[str, Any]) -> Content:
    from pipeline.ablation.grid import make_grid

    file = load_grid_file(params["name"], params["benchmarks"])
    make_grid(file)
    return file.name, file.config, (params["name"], file.config.base, *file.config.benchmarks)


_CONTENTS = {"train": _train, "search": _search, "ablate": _ablate}
