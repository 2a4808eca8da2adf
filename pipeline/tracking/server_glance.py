"""A look into an MLflow server, without MLflow (`pipeline.tracking.glance` says why): two calls of its documented REST API."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any

import requests

from pipeline.tracking.store import (
    CONNECT_SECONDS,
    PASSWORD_VARIABLE,
    TOKEN_VARIABLE,
    USERNAME_VARIABLE,
    TrackedRun,
    check_reachable,
)

ANSWER_SECONDS = 10.0


class ServerGlance:
    """Finished runs of one experiment on a server. Credentials that only MLflow itself would find lead to "nothing found".

    Args:
        uri: `http(s)://HOST:PORT`.
        experiment: its name.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self._uri, self._experiment = uri.rstrip("/"), experiment

    def find_finished(self, config_hash: str, split: str) -> TrackedRun | None:
        """The latest finished run of a config on a split, without its metrics.

        Raises:
            TrackingError: when nobody answers at all.
        """
        try:
            run = self._latest(self._experiment_id, config_hash, split) if self._experiment_id else None
            return _tracked(run) if run else None
        except (requests.RequestException, KeyError, TypeError):
            return None

    @cached_property
    def _experiment_id(self) -> str | None:
        """Asked once, for all runs that are looked for."""
        check_reachable(self._uri)
        asked = {"experiment_name": self._experiment}
        with _session() as session:
            found = _answer(session.get(self._url("experiments/get-by-name"), params=asked, timeout=_PATIENCE))
        experiment = found["experiment"]
        return str(experiment["experiment_id"]) if experiment["lifecycle_stage"] == "active" else None

    def _latest(self, experiment: str, config_hash: str, split: str) -> dict[str, Any] | None:
        asked: dict[str, Any] = {
            "experiment_ids": [experiment],
            "filter": "attributes.status = 'FINISHED' "
            f"and tags.`mgmrn.config_hash` = '{config_hash}' and tags.`mgmrn.split` = '{split}'",
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1,
        }
        with _session() as session:
            runs = _answer(session.post(self._url("runs/search"), json=asked, timeout=_PATIENCE)).get("runs", [])
        return runs[0] if runs else None

    def _url(self, call: str) -> str:
        return f"{self._uri}/api/2.0/mlflow/{call}"


_PATIENCE = (CONNECT_SECONDS, ANSWER_SECONDS)


def _session() -> requests.Session:
    """With the credentials of MLflow's variables; those in the address need nothing."""
    session = requests.Session()
    if (name := os.environ.get(USERNAME_VARIABLE)) and (password := os.environ.get(PASSWORD_VARIABLE)):
        session.auth = (name, password)
    elif token := os.environ.get(TOKEN_VARIABLE):
        session.headers["Authorization"] = f"Bearer {token}"
    return session


def _answer(response: requests.Response) -> dict[str, Any]:
    response.raise_for_status()
    content = response.json()
    if not isinstance(content, dict):
        raise TypeError("an answer of MLflow's is an object")
    return content


def _tracked(run: dict[str, Any]) -> TrackedRun:
    info = run["info"]
    tags = {one["key"]: one["value"] for one in run["data"]["tags"]}
    return TrackedRun(info["run_id"], info.get("run_name", ""), "FINISHED", tags, {}, str(info["experiment_id"]))
