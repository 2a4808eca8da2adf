"""`promote`: conditions of a registration, aliases, and the difference to the champion."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.analysis.paired import bootstrapped_difference
from pipeline.tracking.registry import version_of_alias, versions
from tests.finished_grid import SCORES, FinishedGrid, add_run
from tests.grids import DECIDED

NAME = "mgmrn-TINY"


@pytest.fixture
def grid(finished_grid: FinishedGrid, tmp_path: Path) -> FinishedGrid:
    return finished_grid.copied_to(tmp_path)


@pytest.fixture
def ask(grid: FinishedGrid, asked: Any) -> Any:
    return lambda *words: asked("promote", *words, "--tracking-uri", grid.store.uri)


def test_the_first_is_a_candidate_and_then_the_champion(grid: FinishedGrid, ask: Any) -> None:
    run_id = grid.runs["base"][1]
    code, said, err = ask(run_id)
    assert code == 0, err
    assert (said["model"], said["version"], said["alias"]) == (NAME, "1", "candidate")
    assert said["seeds"] == {str(seed): run for seed, run in enumerate(grid.runs["base"])}
    assert "there is no champion yet" in err
    _, said, _ = ask(run_id, "--champion")
    assert (said["version"], said["uri"]) == ("1", f"models:/{NAME}@champion")
    (version,) = versions(grid.store, NAME)
    assert version.aliases == ("champion",), "a champion is no candidate"
    _, said, err = ask(run_id)
    assert said["alias"] == "champion" and "it is the champion" in err
    _, said, _ = ask(grid.runs["base"][2])
    assert said["remark"] == "the champion, version 1, is another seed of the same config"


def test_the_difference_to_the_champion_is_paired_by_seed(grid: FinishedGrid, ask: Any) -> None:
    base, smooth = grid.runs["base"][0], grid.runs["smooth"][0]
    ask(base, "--champion")
    code, said, err = ask(smooth)
    assert code == 0
    keys = ["model", "version", "alias", "uri", "run_id", "seeds", "champion_before", "remark"]
    assert list(said) == [*keys, "comparisons", "published"], "scripts read these keys"
    assert (said["champion_before"], said["comparisons"][0]["metric"]) == ("1", "gzsl_h")
    (entry,) = [one for one in said["comparisons"][0]["entries"] if one["variant"] == "candidate"]
    wanted, found = bootstrapped_difference(SCORES["smooth"], SCORES["base"]), entry["difference"]
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((wanted.mean, wanted.low, wanted.high))
    assert entry["verdict"] == "better"
    assert f"{100 * wanted.low:+.1f} … {100 * wanted.high:+.1f}" in err
    champion, candidate = (version_of_alias(grid.store, NAME, alias) for alias in ("champion", "candidate"))
    assert champion and candidate and (champion.run_id, candidate.run_id) == (base, smooth)
    ask(smooth, "--champion")
    assert version_of_alias(grid.store, NAME, "champion") == versions(grid.store, NAME)[0]
    assert version_of_alias(grid.store, NAME, "candidate") is None


TOO_FEW = "its config has 2 finished final seeds of committed code (0, 1), 3 are needed"


@pytest.mark.parametrize(
    ("variant", "seed", "changed", "reason"),
    [
        ("base", 0, {"code_dirty": "true"}, "its code is not committed"),
        ("base", 0, {"code_sha": "none"}, "its code is not committed"),
        ("base", 0, {"split": "tune"}, "it is not a run of the final split"),
        ("base", 0, {"benchmark": "CUB-standin"}, "its pictures are drawn stand-ins"),
        ("base", 0, {"model_uri": ""}, "it has logged no model"),
        ("base", 0, {"kind": "trial"}, "is no finished training run"),
        ("rough", 0, {}, TOO_FEW),
        ("base", 2, {"code_digest": "other"}, TOO_FEW),
        ("base", 2, {"code_dirty": "true"}, TOO_FEW),
    ],
)
def test_a_refused_promotion_has_a_reason(
    variant: str, seed: int, changed: Any, reason: str, grid: Any, ask: Any
) -> None:
    grid.store.set_tags(grid.runs[variant][seed], {f"mgmrn.{key}": value for key, value in changed.items()})
    code, said, _ = ask(grid.runs[variant][0])
    assert code == 2 and reason in said["error"]
    assert versions(grid.store, NAME) == []


def test_the_latest_run_of_a_seed_counts_and_other_data_are_not_compared(grid: FinishedGrid, ask: Any) -> None:
    again = add_run(grid.store, grid.cells["base"][2].final(DECIDED), 0.9)
    _, said, _ = ask(grid.runs["base"][0], "--champion")
    assert said["seeds"]["2"] == again
    grid.store.set_tags(grid.runs["base"][0], {"mgmrn.data_digest": "other"})
    _, said, _ = ask(grid.runs["smooth"][0])
    assert said["comparisons"] == [] and "was scored on other data" in said["remark"]
