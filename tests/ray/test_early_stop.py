"""An early stop frees the CPUs, the placement group and every actor."""

import json
import subprocess
import sys

import pytest

from tests.ray.command import REPOSITORY, Place
from tests.ray.small import write_small

pytestmark = [pytest.mark.ray, pytest.mark.long]

SCRIPT = REPOSITORY / "tests" / "ray" / "stop_a_trial.py"


@pytest.mark.timeout(300)
def test_a_stopped_trial_leaves_nothing_behind_also_where_the_dashboard_is_dead(place: Place) -> None:
    write_small(place.folder)
    settings = {"cwd": place.folder, "env": place.environment, "capture_output": True, "text": True, "timeout": 280}
    done = subprocess.run([sys.executable, str(SCRIPT)], **settings)
    assert done.returncode == 0, done.stderr
    stopped = json.loads(done.stdout.splitlines()[-1])
    for found in stopped:
        assert found["reports"] == [1], "it was stopped at its first report"
        assert found["is_free"], json.dumps(found)
        assert found["groups"] == []
    first, _without_dashboard = stopped
    assert first["actors"] == []
