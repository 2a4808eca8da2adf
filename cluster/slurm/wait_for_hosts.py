"""Waits until the hosts of a job have joined: `python -m cluster.slurm.wait_for_hosts 8`. Needs `RAY_ADDRESS`.

A launch is checked against the hosts that are up; one that began too early would be refused, or run on fewer.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from mgmrn.errors import ResourceError
from pipeline.errors import exit_code

POLL_SECONDS = 3.0


def wait_for_hosts(
    wanted: int, timeout_s: float, hosts_up: Callable[[], int], sleep: Callable[[float], None] = time.sleep
) -> None:
    """Returns when as many hosts are up as are wanted.

    Args:
        wanted: hosts, the head among them.
        timeout_s: seconds, at least those that are slept through; how long an answer takes is not counted.
        hosts_up: asks the cluster; raises a ResourceError while the head does not answer yet.
        sleep: waits some seconds.

    Raises:
        ResourceError: when they do not come in time.
    """
    waited, seen = 0.0, 0
    while True:
        try:
            seen = hosts_up()
        except ResourceError:
            seen = 0
        if seen >= wanted:
            return
        if waited >= timeout_s:
            raise ResourceError(
                f"{seen} of {wanted} hosts of Ray were up after {timeout_s:.0f} s",
                "see the job's output for what kept the others, and give it more time with --timeout",
            )
        sleep(POLL_SECONDS)
        waited += POLL_SECONDS


def count_hosts() -> int:
    """Hosts of the cluster at `RAY_ADDRESS`."""
    from pipeline.train.cluster import ray_session

    with ray_session(None) as hosts:
        return len(hosts)


def main(arguments: Sequence[str]) -> int:
    """Parses, waits, and answers with an exit code."""
    parser = argparse.ArgumentParser(prog="python -m cluster.slurm.wait_for_hosts", description=__doc__)
    parser.add_argument("wanted", type=int, help="hosts, the head among them")
    parser.add_argument("--timeout", type=float, default=300.0, metavar="SECONDS")
    given = parser.parse_args(arguments)
    try:
        wait_for_hosts(given.wanted, given.timeout, count_hosts)
    except ResourceError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
