"""Report of a search: table, importances, and one page that needs no network."""

import json
import random
import re
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.search.report import importances, write_study
from pipeline.search.study import Record

optuna.logging.set_verbosity(optuna.logging.ERROR)
PLOTS = ["Parameter importances", "Parallel coordinates", "Slices"]
ONE = ["Optimisation history", *PLOTS, "Curves of the trials"]
TWO = ["Pareto front", *PLOTS]


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
        if objectives == 1:
            trial.report(score / 2, 1)
        study.tell(trial, [score, 1000.0 + number][:objectives])
    return study


def written(folder: Path, study: optuna.Study, records: list[Record], targets: list[str]) -> str:
    """The page without the code of the library, once it is known to fetch nothing."""
    write_study(folder, study, records, "Search <x> & y", targets)
    text = (folder / "study.html").read_text(encoding="utf-8")
    tags = re.sub("(<script[^>]*>).*?</script>", r"\1", text, flags=re.DOTALL)
    assert re.findall(r"<[^>]*\b(?:src|href|data|srcset)=", tags) == []
    return tags


def headings_of(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


@pytest.mark.parametrize(("targets", "headings"), [(["ausuc"], ONE), (["ausuc", "step_ms"], TWO)])
def test_the_page_has_all_plots_and_fetches_nothing(tmp_path: Path, targets: list[str], headings: list[str]) -> None:
    page = written(tmp_path, study_of(len(targets), 12), [], targets)
    assert headings_of(page) == headings and page.count('class="plotly-graph-div"') == len(headings)
    assert "Search &lt;x&gt; &amp; y" in page and "Cannot be drawn" not in page
    assert (tmp_path / "study.html").read_text().count("plotly.js v") == 1, "the library is put in once"
    assert headings_of(written(tmp_path, study_of(len(targets), 1), [], targets)) == headings, "a single trial will do"
    assert json.loads((tmp_path / "importances.json").read_text()) == {}


def test_a_failed_trial_alone_leaves_a_page_too(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.tell(study.ask(), state=TrialState.FAIL)
    records = [Record(0, "failed", {"model.levels": ["c4", "c5"]}, (), {}, "bad-input: a, b")]
    assert headings_of(written(tmp_path, study, records, ["ausuc"])) == ONE


def test_the_table_has_a_row_for_every_trial(tmp_path: Path) -> None:
    records = [
        Record(0, "finished", {"b": 0.5, "a": ["c4"]}, (0.5, 1000.0), {1: (0.2,), 2: (0.3, 0.4)}, ""),
        Record(1, "stopped", {"b": 0.25}, (0.125,), {1: (0.125,)}, ""),
        Record(2, "failed", {"a": ["c4", "c5"]}, (), {}, "bad-input: a, b"),
    ]
    write_study(tmp_path, study_of(2, 0), records, "x", ["ausuc", "parameters"])
    assert (tmp_path / "trials.csv").read_text() == (
        "trial,state,ausuc,parameters,percent,a,b,reason\n"
        "0,finished,0.5,1000.0,2,[c4],0.5,\n"
        "1,stopped,0.125,,1,,0.25,\n"
        '2,failed,,,0,"[c4, c5]",,"bad-input: a, b"\n'
    )


def test_importances_name_what_the_score_depends_on_also_beside_a_cost() -> None:
    found = importances(study_of(1, 24))
    assert max(found, key=lambda path: found[path]) == "optimiser.head_lr"
    assert found["optimiser.head_lr"] > 0.8 and sum(found.values()) == pytest.approx(1)
    assert importances(study_of(2, 24)) == found
