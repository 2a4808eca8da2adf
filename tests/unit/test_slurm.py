"""The sbatch script, run on stand-ins of Slurm's and Ray's programs that log their arguments."""

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "cluster" / "slurm" / "mgmrn.sbatch"
STAND_INS = Path(__file__).with_name("slurm")
JOB = 4321


@dataclass(frozen=True)
class Job:
    folder: Path
    process: subprocess.Popen[str]

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output


def submit(folder: Path, *arguments: str, answer: int = 0, nodes: int = 2) -> Job:
    """Run the script as Slurm would on the first of some nodes, of which two come up."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").write_text(f'export PATH="{STAND_INS}:$PATH"\n')
    (folder / "cluster").mkdir()
    (folder / "calls").touch()
    shutil.copy(ROOT / "cluster" / "environment.sh", folder / "cluster")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_", "MGMRN_"))}
    slurm = {"SLURM_JOB_ID": str(JOB), "SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_NODELIST": "node[1-2]"}
    slurm |= {"SLURM_CPUS_PER_TASK": "64", "SLURM_GPUS_ON_NODE": "8", "MLFLOW_TRACKING_PASSWORD": "secret"}
    slurm["MGMRN_HOST_TIMEOUT"] = "2" if nodes > 2 else "120"
    stand_ins = {"CALLS": str(folder / "calls"), "ANSWER": str(answer), "NODES": str(nodes)}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return Job(folder, subprocess.Popen(["bash", str(SCRIPT), *arguments], env=kept | slurm | stand_ins, **streams))


def test_a_job_from_its_start_to_its_end(tmp_path: Path):
    job = submit(tmp_path, "train", "cub", "--workers", "16")
    code, output = job.end()
    calls = job.calls()
    assert code == 0 and "error" not in output
    driver = calls.index("python -m pipeline train cub --workers 16")
    assert calls.index("up 1") < calls.index("up 2") < driver, "the driver waits for all nodes"
    assert f"driver RAY_ADDRESS=192.0.2.1:{20000 + JOB % 1000 * 10} password=secret" in calls

    head, worker = [call for call in calls if call.startswith("srun") and " ray start " in call]
    assert "--nodelist=node1" in head and "--head" in head and "--dashboard-host=127.0.0.1" in head
    assert "--exclude=node1" in worker and "--address=192.0.2.1:" in worker
    assert all("--num-cpus=64 --num-gpus=8" in start for start in (head, worker))
    assert not any(f"={port}" in head for port in (6379, 8265, 10001)), "each job has ports of its own"

    given = sorted(call for call in calls if " mode=" in call)
    assert given == [f"{role} mode=token token=none file=600 bytes=64 password=none" for role in ("head", "worker")]
    assert not list((job.folder / ".mgmrn" / "slurm").iterdir()), "the token is removed"
    assert [call for call in calls if call.endswith(" ended")] == ["worker ended", "head ended"]
    assert any(f"rm -rf /tmp/ray-{JOB}" in call for call in calls)


def test_a_failed_verb_fails_the_job_and_keeps_the_logs(tmp_path: Path):
    job = submit(tmp_path, "train", "cub", answer=3)
    code, output = job.end()
    assert code == 3
    assert {"worker ended", "head ended"} <= set(job.calls())
    assert not any("rm -rf" in call for call in job.calls())
    assert f"/tmp/ray-{JOB}" in output


def test_the_end_of_its_time_ends_the_driver_and_then_the_hosts(tmp_path: Path):
    job = submit(tmp_path, "search", "cub100")
    for _ in range(600):
        if any(call.startswith("driver") for call in job.calls()):
            break
        time.sleep(0.05)
    job.process.send_signal(signal.SIGTERM)
    code, _ = job.end()
    assert code == 143
    assert [call for call in job.calls() if call.endswith(" ended")] == ["driver ended", "worker ended", "head ended"]


def test_without_a_verb_or_without_all_nodes_no_driver_starts(tmp_path: Path):
    job = submit(tmp_path / "none")
    code, output = job.end()
    assert code == 2 and "usage" in output
    assert not job.calls()
    job = submit(tmp_path / "job", "train", "cub", nodes=3)
    code, output = job.end()
    # On a busy machine the head itself may be late.
    assert code == 3 and re.search(r"error: [0-2] of [13] nodes of Ray were up", output), output
    assert not any("pipeline" in call for call in job.calls())
