"""What a search leaves for people: a table, importances, and one page that needs no network."""

from __future__ import annotations

import csv
import json
import random
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.search.report import importances, write_study
from pipeline.search.study import Record

optuna.logging.set_verbosity(optuna.logging.ERROR)
ONE = ["Optimisation history", "Parameter importances", "Parallel coordinates", "Slices", "Curves of the trials"]
TWO = ["Pareto front", "Importance for the score", "Parallel coordinates", "Slices"]


class Page(HTMLParser):
    """What a browser would fetch, what it would draw, and the headings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.headings: list[str] = []
        self.plots = 0
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        given = dict(attributes)
        self.fetched += [value for name in ("src", "href", "data", "srcset") if (value := given.get(name))]
        self.plots += "plotly-graph-div" in (given.get("class") or "")

    def handle_data(self, data: str) -> None:
        if self._tag == "h2":
            self.headings.append(data)
        self._tag = ""


def study_of(objectives: int, count: int) -> optuna.Study:
    """A search in which the rate decides, and the mode hardly; the count is there for one mode alone."""
    directions = ["maximize", "minimize"][:objectives]
    study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(0))
    noise = random.Random(0)
    for number in range(count):
        trial = study.ask()
        rate = trial.suggest_float("optimiser.head_lr", 1e-4, 1e-2, log=True)
        mode = trial.suggest_categorical("model.regions.mode", ["none", "regions"])
        if mode == "regions":
            trial.suggest_int("model.regions.count", 2, 8)
        score = 50 * rate + 0.02 * (mode == "none") + 0.001 * noise.random()
        trial.set_user_attr("point", dict(trial.params))
        if objectives == 1:
            trial.report(score / 2, 1)
        study.tell(trial, [score, 1000.0 + number][:objectives])
    return study


def records_of(study: optuna.Study) -> list[Record]:
    return [
        Record(trial.number, "finished", trial.params, tuple(trial.values), {1: (0.1,), 4: (0.2,)}, "")
        for trial in study.trials
    ]


def written(folder: Path, study: optuna.Study, records: list[Record], targets: list[str]) -> Page:
    write_study(folder / "report", study, records, "Search <x> & y", targets)
    return Page((folder / "report" / "study.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("targets", "headings"), [(["ausuc"], ONE), (["ausuc", "step_ms"], TWO)])
def test_the_page_has_all_plots_and_fetches_nothing(tmp_path: Path, targets: list[str], headings: list[str]) -> None:
    study = study_of(len(targets), 12)
    page = written(tmp_path, study, records_of(study), targets)
    assert page.headings == headings
    assert page.plots == len(headings)
    assert page.fetched == []
    text = (tmp_path / "report" / "study.html").read_text()
    assert text.count("<script") >= 1 and "Search &lt;x&gt; &amp; y" in text
    assert "Cannot be drawn" not in text
    assert text.count("plotly.js v") == 1, "the library is put in once"


@pytest.mark.parametrize(("targets", "headings"), [(["ausuc"], ONE), (["ausuc", "parameters"], TWO)])
@pytest.mark.parametrize("count", [0, 1])
def test_few_trials_leave_a_page_too(tmp_path: Path, targets: list[str], headings: list[str], count: int) -> None:
    study = study_of(len(targets), count)
    page = written(tmp_path, study, records_of(study), targets)
    assert page.headings == headings
    assert page.fetched == []
    assert json.loads((tmp_path / "report" / "importances.json").read_text()) == {}


def test_trials_that_failed_alone_leave_a_page_too(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.tell(study.ask(), state=TrialState.FAIL)
    records = [Record(0, "failed", {"model.levels": ["c4", "c5"]}, (), {}, "bad-input: a, b")]
    assert written(tmp_path, study, records, ["ausuc"]).headings == ONE
    rows = list(csv.DictReader((tmp_path / "report" / "trials.csv").open(encoding="utf-8")))
    assert rows[0]["reason"] == "bad-input: a, b" and rows[0]["model.levels"] == "[c4, c5]"


def test_the_table_has_a_row_for_every_trial(tmp_path: Path) -> None:
    study = study_of(2, 2)
    records = [
        Record(0, "finished", {"b": 0.5, "a": ["c4"]}, (0.5, 1000.0), {1: (0.2,), 2: (0.3, 0.4)}, ""),
        Record(1, "stopped", {"b": 0.25}, (0.125,), {1: (0.125,)}, ""),
        Record(2, "failed", {"a": ["c4", "c5"]}, (), {}, "out-of-memory: full"),
    ]
    write_study(tmp_path, study, records, "x", ["ausuc", "parameters"])
    assert (tmp_path / "trials.csv").read_text() == (
        "trial,state,ausuc,parameters,steps,a,b,reason\n"
        "0,finished,0.5,1000.0,2,[c4],0.5,\n"
        "1,stopped,0.125,,1,,0.25,\n"
        '2,failed,,,0,"[c4, c5]",,out-of-memory: full\n'
    )


def test_importances_name_what_the_score_depends_on_the_same_each_time(tmp_path: Path) -> None:
    study = study_of(1, 24)
    found = importances(study)
    assert max(found, key=lambda path: found[path]) == "optimiser.head_lr"
    assert found["optimiser.head_lr"] > 0.8 and sum(found.values()) == pytest.approx(1)
    assert importances(study) == found
    write_study(tmp_path, study, records_of(study), "x", ["ausuc"])
    assert json.loads((tmp_path / "importances.json").read_text()) == found


def test_importances_for_the_score_are_the_same_beside_a_cost() -> None:
    assert importances(study_of(2, 24), objectives=2) == importances(study_of(1, 24))


def test_trials_that_all_score_the_same_show_no_importance(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(0))
    for _ in range(6):
        trial = study.ask()
        trial.suggest_float("loss.scale", 1, 2)
        study.tell(trial, 0.5)
    assert importances(study) == {}
    assert written(tmp_path, study, records_of(study), ["ausuc"]).headings == ONE
