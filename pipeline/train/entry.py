"""Where a rank starts. Apart from `worker`, so that driver, trial and controller name it without loading the network's packages.

Importing those takes seconds of a core in each process, and a run has several processes besides its ranks.
"""

from __future__ import annotations


def train_worker(spec_json: dict[str, str]) -> None:
    """Trains one rank.

    Args:
        spec_json: `{"spec": RunSpec as JSON}`.
    """
    from pipeline.train.worker import run_rank

    run_rank(spec_json["spec"])
