"""Environment of a submitted job, as its driver sees it."""

import json
import os
from collections.abc import Mapping
from typing import Any

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that Ray sets in the driver of a submitted job."""
SUBMISSION_TAG = "mgmrn.ray_submission_id"
CODE_STATE = "mgmrn.code_state"
"""Key of the job's metadata under which `submit` sends the state of the code."""


def in_job() -> bool:
    """Whether this process is the driver of a submitted job, with a working folder that goes with the job."""
    return JOB_VARIABLE in os.environ


def code_state() -> str | None:
    """State of the code as `submit` sent it; None outside a job of `submit`."""
    return _job("metadata").get(CODE_STATE)


def job_tags() -> dict[str, str]:
    """Tag of a run with the id of its job."""
    submission = _job("metadata").get("job_submission_id")
    return {} if submission is None else {SUBMISSION_TAG: submission}


def job_settings() -> Mapping[str, Any]:
    """Environment variables that the job brought for all its processes; Ray refuses a driver that sets one of them again."""
    return _job("runtime_env").get("env_vars") or {}


def _job(section: str) -> Mapping[str, Any]:
    """Section of the job's configuration; empty outside a job, and where it does not hold the section."""
    try:
        found = json.loads(os.environ.get(JOB_VARIABLE, "{}"))[section]
    except (ValueError, LookupError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}
