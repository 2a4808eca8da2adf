"""Code, versions and machine of a run."""

import base64
import getpass
import hashlib
import json
import os
import platform
import subprocess
import sys
import zlib
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import psutil  # type: ignore[import-untyped]

from mgmrn.config import ExperimentConfig
from mgmrn.trunks import TIMM
from pipeline.config.identity import REPOSITORY
from pipeline.console import shell_command
from pipeline.job_environment import code_state, in_job
from pipeline.redaction import redact, redact_address

PACKAGES = ("torch", "torchvision", "timm", "ray", "mlflow", "numpy", "scipy", "pydantic", "optuna")
NUMERICS = ("torch", "torchvision", "numpy", "scipy")
"""Packages whose version may change a figure; timm, where it has the backbone."""
NO_GIT = "none"
TAG_LIMIT = 5000
"""Characters of a tag that every store takes."""
ENVIRONMENT_TAG = "mgmrn.environment"
"""Tag of a run with the folder that `write_environment` made, among the artifacts of its launch."""


@dataclass(frozen=True)
class GitState:
    """Commit of the code, and the changes since."""

    sha: str
    dirty: bool
    diff: str
    untracked: tuple[str, ...]

    @property
    def changed_files(self) -> int:
        return sum(line.startswith("diff --git ") for line in self.diff.splitlines()) + len(self.untracked)

    def to_label(self) -> str:
        """Serialise to compressed ASCII, for the metadata of a job, whose folder has no `.git`."""
        return base64.b64encode(zlib.compress(json.dumps(asdict(self)).encode())).decode()

    @classmethod
    def from_label(cls, text: str) -> Self:
        values = json.loads(zlib.decompress(base64.b64decode(text)))
        return cls(**{**values, "untracked": tuple(values["untracked"])})


def git_state(repository: Path = REPOSITORY) -> GitState:
    """State of the checkout of this code; in a submitted job, of the checkout that it was sent from."""
    if (sent := code_state()) is not None:
        return GitState.from_label(sent)
    git = partial(_output, "git", "-C", str(repository))
    sha = git("rev-parse", "--verify", "HEAD").strip()
    if not sha:
        return GitState(NO_GIT, False, "", ())
    diff = git("diff", "--no-ext-diff", "HEAD")
    untracked = tuple(git("ls-files", "--others", "--exclude-standard").splitlines())
    return GitState(sha, bool(diff or untracked), diff, untracked)


def origin_tags() -> dict[str, str]:
    """Tags that say who started a run, by which command and with which code; MLflow's UI shows those of its own as columns."""
    state = git_state()
    words = [redact_address(word) for word in sys.argv[1:]]
    commit = {} if state.sha == NO_GIT else {"mlflow.source.git.commit": state.sha}
    return {
        "mlflow.user": _user(),
        "mlflow.source.name": shell_command(*words[:2]),
        "mlflow.source.type": "JOB" if in_job() else "LOCAL",
        "mgmrn.command": shell_command(*words)[:TAG_LIMIT],
        **commit,
        "mgmrn.code_sha": state.sha,
        "mgmrn.code_dirty": str(state.dirty).lower(),
    }


def _user() -> str:
    """Name of this process's user, or the number of one that the system does not know, as in many containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def environment() -> dict[str, Any]:
    """Versions and hardware of this host as JSON values, without importing the packages."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        # By the driver's own tool, since torch would have to be imported.
        "gpus": _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def write_environment(folder: Path) -> str:
    """Write machine, versions and git state of this process into `env/DIGEST` of a folder, passwords masked; returns that path.

    The digest of the content keeps apart what several launches, perhaps on several hosts, write into one folder.
    """
    git = git_state()
    state = {"sha": git.sha, "dirty": git.dirty, "untracked": git.untracked}
    files = {"environment.json": json.dumps(environment(), indent=1), "git.json": json.dumps(state, indent=1)}
    if git.diff:
        files["git.diff"] = redact(git.diff)
    path = f"env/{hashlib.sha256(''.join(files.values()).encode()).hexdigest()[:12]}"
    (folder / path).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / path / name).write_text(text, encoding="utf-8")
    return path


def numerics(config: ExperimentConfig) -> str:
    """Versions that may change a figure of a config, like `python 3.11, torch 2.9.1, …`."""
    packages = (*NUMERICS, "timm") if config.model.backbone.name.startswith(TIMM) else NUMERICS
    python = ".".join(platform.python_version_tuple()[:2])
    return ", ".join([f"python {python}", *(f"{name} {_version(name)}" for name in packages)])


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _output(*command: str) -> str:
    """Standard output of a command; empty if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
