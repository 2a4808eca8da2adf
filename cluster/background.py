"""Processes that outlive who asked for them, or that are ended by him alone."""

from __future__ import annotations

import pwd
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def start_in_background(
    command: Sequence[str], environment: Mapping[str, str], log: Path, user: str | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, which no Ctrl-C in ours reaches.

    Args:
        command: what is run.
        environment: all of it.
        log: takes both outputs, after what stands there.
        user: whom it runs as; None: as this process does.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=user,
            group=user and _group_of(user),
            extra_groups=[] if user else None,
        )


def _group_of(user: str) -> int:
    return pwd.getpwnam(user).pw_gid
