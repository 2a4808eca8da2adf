"""`python -m pipeline`."""

import io
import os
import sys
from pathlib import Path

from mgmrn.errors import ResourceError
from pipeline.console import Console
from pipeline.errors import ExitCode, error_object


def run() -> int:
    """Run the command that was typed. A standard output that is closed, full, or not in UTF-8 changes nothing else."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Closed by the shell.
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        from pipeline.cli.app import main

        code = main(sys.argv[1:])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("mgmrn", "pipeline"):
            raise
        hint = "run make setup in the checkout's folder, then source .venv/bin/activate"
        missing = ResourceError(f"the package {error.name} is not installed", hint)
        sys.stderr.write(f"error: {missing}\n")
        Console("--json" in sys.argv).result(error_object(missing))
        code = ExitCode.CANNOT_RUN_HERE
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would flush once more at its end, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


if __name__ == "__main__":
    sys.exit(run())
