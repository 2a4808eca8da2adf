"""What a Python process that does nothing else prints."""

from __future__ import annotations

import os
import subprocess
import sys

from mgmrn.errors import UserError
from pipeline.tracking.environment import REPOSITORY


def printed_by(*arguments: str) -> str:
    """Standard output of `python ARGUMENTS` in the present folder.

    Raises:
        UserError: with the end of its standard error, when it failed.
    """
    code = {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ | code)
    if done.returncode:
        last = next(reversed(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise UserError(
            f"a command that was to be measured failed: {last}",
            " ".join(arguments[:3]),
            "run it by itself to see more",
        )
    return done.stdout
