"""The command line: every verb parses, calls one function, prints. Heavy packages are imported when a verb needs them."""

import errno
import os
import signal
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mgmrn.errors import ResourceError, UserError
from pipeline.cli import completion
from pipeline.cli.ablation_verbs import ablation_app
from pipeline.cli.config_verbs import config_app
from pipeline.cli.data_verbs import data_app
from pipeline.cli.job_verbs import jobs_app
from pipeline.cli.model_verbs import models_app
from pipeline.cli.options import APP_OPTIONS
from pipeline.cli.run_verbs import runs_app
from pipeline.cli.store_verbs import store_app
from pipeline.console import Console
from pipeline.errors import ExitCode, Expected, TrackingError, error_object, exit_code
from pipeline.interruption import Interruption, raised_signals

PLACE_ERRORS = {errno.EACCES, errno.EDQUOT, errno.EEXIST, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
PLACE_ERRORS |= {errno.ENOSPC, errno.ENOTDIR, errno.ENXIO, errno.EPERM, errno.EROFS}
"""Errors of the operating system that are about a path or a disk and never a defect."""
TRACEBACK_VARIABLE = "MGMRN_TRACEBACK"

shell_app = typer.Typer()


@shell_app.command("completion")
def complete(shell: Annotated[completion.Shell, typer.Argument(help="Shell that runs the script.")]) -> None:
    """Print a script that defines and completes `mgmrn`, which is `python -m pipeline`: eval "$(… completion bash)"."""
    Console().line(completion.script(shell).rstrip())


app = typer.Typer(help="Zero-shot learning experiments with Mg-MRN.", **APP_OPTIONS)
for group in (runs_app, ablation_app, models_app, store_app, jobs_app, shell_app):
    app.add_typer(group)
app.add_typer(data_app, name="data")
app.add_typer(config_app, name="config")
command: Any = typer.main.get_command(app)


def main(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; a user's mistake is answered with one sentence."""
    console = Console("--json" in arguments)
    completion.prepare()
    try:
        with raised_signals():
            answer = command.main(
                args=list(arguments),
                prog_name="python -m pipeline",
                standalone_mode=False,
                complete_var=completion.VARIABLE,
            )
        return int(answer or ExitCode.FINE)
    except typer.TyperException as error:
        return _usage_error(error, console)
    except (UserError, ResourceError, TrackingError) as error:
        return _expected_error(error, console)
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        hint = "check the path, its permissions, and the room on its disk"
        where = str(error.filename or "")
        return _expected_error(UserError(f"a file cannot be used: {error.strerror}", where, hint), console)
    except Interruption as interruption:
        by = "" if interruption.signal == signal.SIGINT else f" by {interruption.signal.name}"
        console.err.write(f"interrupted{by}; the same command goes on from the last checkpoint\n")
        return interruption.exit_code


def _usage_error(error: Any, console: Console) -> int:
    """Answer what Typer finds wrong with the words of a command; a group without a verb is answered with the list of its verbs."""
    text = error.format_message()
    if error.ctx is not None and text == error.ctx.get_help():
        console.err.write(f"{text}\n")
        console.result({"error": "a verb is missing", "where": error.ctx.command_path, "hint": "see --help"})
        return ExitCode.BAD_INPUT
    hint = f"see {error.ctx.command_path} --help" if error.ctx else ""
    return _expected_error(UserError(" ".join(text.split()).rstrip("."), hint=hint), console)


def _expected_error(error: Expected, console: Console) -> int:
    if os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0"):
        console.err.write("".join(traceback.format_exception(error)))
    console.err.write(f"error: {error}\n")
    console.result(error_object(error))
    return exit_code(error)
