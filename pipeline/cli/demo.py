"""`demo`: the whole protocol on the embedded benchmark, Mg-MRN beside the one-level baseline, on two workers."""

from __future__ import annotations

from mgmrn.makers.synthetic import make_synthetic
from pipeline import places
from pipeline.config.compose import load_experiment
from pipeline.console import say
from pipeline.train.cluster import ray_session
from pipeline.train.launch import run_experiment
from pipeline.train.placement import Workers, available_cpus
from pipeline.train.request import Outcome, TrainRequest
from pipeline.where import Where

EXPERIMENTS = ("synthetic", "synthetic-attribute-network")


def run_demo() -> Outcome:
    """Draws the benchmark where it is not there yet, trains both networks, and returns their runs together."""
    say("drawing the embedded benchmark: 40 classes of creatures, 10 of them never seen in training")
    make_synthetic(places.DATA_ROOT, workers=available_cpus())
    with ray_session(None):
        outcomes = [run_experiment(_request(name)) for name in EXPERIMENTS]
    say("chance of T1 is 0.10; to look at the runs: make ui, then http://127.0.0.1:5000")
    statuses = {outcome.status for outcome in outcomes}
    return Outcome(
        status="failed" if "failed" in statuses else "cached" if statuses == {"cached"} else "finished",
        runs=tuple(run for outcome in outcomes for run in outcome.runs),
        parent_run_id=outcomes[0].parent_run_id,
        tracking_uri=outcomes[0].tracking_uri,
    )


def _request(name: str) -> TrainRequest:
    composed, workers = load_experiment(name), min(2, available_cpus())
    return TrainRequest(
        experiment=name,
        composed=composed,
        split=None,
        seeds=(composed.config.seed,),
        workers=Workers(workers, workers),
        where=Where(),
    )
