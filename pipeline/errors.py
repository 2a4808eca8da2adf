"""Exit codes, and the errors that are answered with a sentence."""

from enum import IntEnum

from mgmrn.errors import Explained, ResourceError, UserError


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    FINE = 0
    SOME_FAILED = 1
    BAD_INPUT = 2
    CANNOT_RUN_HERE = 3


class TrackingError(Explained, RuntimeError):
    """The tracking server, at the address `where`, cannot be reached or refuses a request."""


class UntrackedError(TrackingError):
    """Runs have ended, and the tracking store could not take all of them; the same command sends the rest without training."""


Expected = UserError | ResourceError | TrackingError
"""Errors that are answered with a sentence; another error is a defect and keeps its traceback."""


def exit_code(error: Expected) -> ExitCode:
    """Exit code for an error."""
    if isinstance(error, UntrackedError):
        return ExitCode.SOME_FAILED
    return ExitCode.CANNOT_RUN_HERE if isinstance(error, ResourceError) else ExitCode.BAD_INPUT


def error_object(error: Expected) -> dict[str, str]:
    """Object that `--json` prints in place of a result."""
    return {"error": error.message, "where": error.where, "hint": error.hint}
