"""Where the time goes before a run's first step, in a process that starts as `train` does.

`python -m pipeline.bench.startup SPEC-AS-JSON TRACKING-URI STORAGE MOMENT` prints the phases in seconds as a JSON object. MOMENT is when the
process was started, in seconds since the epoch.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path


def main(spec_json: str, tracking_uri: str, storage: str, started: str) -> None:
    """Goes the way of `train` up to the first step, and takes the time at each turn."""
    moments = {"start": float(started)}
    import pipeline.train.launch  # noqa: F401  # All that the verb loads.
    from pipeline.bench.spec import StretchSpec
    from pipeline.bench.under_ray import train_stretch
    from pipeline.train.cluster import place, ray_session

    moments["driver: Python and packages"] = time.time()
    from pipeline.tracking.store import TrackingStore

    TrackingStore.connect(tracking_uri)
    moments["driver: MLflow and an empty store"] = time.time()
    spec = StretchSpec.model_validate_json(spec_json)
    with ray_session(None) as hosts:
        moments["Ray"] = time.time()
        times = train_stretch(spec, place(hosts, 1, spec.threads, None), Path(storage))
    moments["worker: process"] = times.entered
    moments["worker: packages"] = times.imported
    moments["worker: data and network"] = times.ready
    moments["worker: first step"] = times.first_step
    names = list(moments)
    phases = {name: moments[name] - moments[before] for before, name in pairwise(names)}
    sys.stdout.write(json.dumps(phases) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
