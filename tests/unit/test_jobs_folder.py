"""Nothing is kept in the folder that goes with the job, whichever way the job was sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgmrn.errors import UserError
from pipeline.cli.app import main
from pipeline.cli.job_folder import check_outlasts_job, lies_in_job
from pipeline.job_environment import JOB_VARIABLE


@pytest.mark.parametrize("place", ["runs", Path(".mgmrn/runs"), "sqlite:///mlflow.db", "sqlite+pysqlite:///a/b.db"])
def test_a_relative_place_lies_in_the_job(place: str | Path) -> None:
    assert lies_in_job(place)


@pytest.mark.parametrize(
    "place", ["/runs", Path("/runs"), "sqlite:////runs/mlflow.db", "http://host:5000", "postgresql://me@host/db"]
)
def test_what_is_elsewhere_outlasts_it(place: str | Path) -> None:
    assert not lies_in_job(place)


def test_the_sentence_names_the_option_and_what_to_give() -> None:
    with pytest.raises(UserError) as caught:
        check_outlasts_job("sqlite:///x.db?password=secret", "--tracking-uri", "MLFLOW_TRACKING_URI")
    sentence = str(caught.value)
    assert all(part in sentence for part in ("--tracking-uri", "sqlite:////FILE", "MLFLOW_TRACKING_URI"))
    assert "secret" not in sentence


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["train", "cub", "--tracking-uri", "http://host", "--data-root", "/data"], "--storage"),
        (["train", "cub", "--storage", "/runs", "--data-root", "/data"], "--tracking-uri"),
        (["ablate", "components", "--storage", "/runs", "--tracking-uri", "http://host"], "--data-root"),
        (["search", "cub100", "--storage", "/r", "--tracking-uri", "http://h", "--data-root", "/d"], "--study-storage"),
        (["plan", "components", "--data-root", "/data"], "--tracking-uri"),
    ],
)
def test_a_driver_refuses_its_own_folder_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], option: str
) -> None:
    for variable in ("MGMRN_DATA_ROOT", "MLFLOW_TRACKING_URI", "MGMRN_STUDY_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    assert main(arguments) == 2
    assert f"goes with the job [{option}]" in capsys.readouterr().err
