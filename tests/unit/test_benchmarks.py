"""Benchmark scripts at small sizes: each prints the JSON object, and its results are equal."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import eval as evaluation
from benchmarks import measure, step
from mgmrn.data.published import PublishedSplits
from tests.tiny import write_benchmark

TINY_TEST = PublishedSplits(attributes=7, seen=5, unseen=3, trainval=0, test_seen=30, test_unseen=20, digest="")
CHANGES = ["benchmark.images.size=32", "sampling.batch=4", "model.width=8", "model.regions.reduced_width=8"]
CHANGES += ["model.granularity.group_norm_groups=4", "model.decoder.attention_width=8"]
SMALL = ("synthetic", "--data-root", "data", "--rounds", "1", *(w for change in CHANGES for w in ("--set", change)))


def printed(bench: str, arguments: tuple[str, ...], monkeypatch: Any, capsys: Any) -> dict[str, Any]:
    """The JSON object that a script prints on standard output."""
    monkeypatch.setattr(sys, "argv", [bench, *arguments])
    importlib.import_module(f"benchmarks.{bench}").main()
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["bench", "environment", "results", "ratios"] and answer["bench"] == bench
    assert answer["environment"]["command"].startswith(f"python -m benchmarks.{bench} {arguments[0]}")
    for one in answer["results"]:
        assert one.keys() == {"name", "median", "min", "max", "unit", "n"} and one["min"] <= one["median"] <= one["max"]
    return answer


def test_step_and_eval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def prepare(variant: str, size: step.StepSize) -> tuple[step.Step, float]:
        return step.make_step(variant, size, torch.device("cpu")), 4.0 if variant == "reference" else 2.0

    monkeypatch.setattr(step, "prepare_on_cpu", prepare)
    monkeypatch.setattr(step, "usual_device", lambda: torch.device("cpu"))
    small = ("--variants", "reference,joint", "--size", "32", "--batch", "2", "--width", "32", "--backbone", "resnet18")
    answer = printed("step", (*small, "--rounds", "1"), monkeypatch, capsys)
    found = {one["name"]: one["median"] for one in answer["results"]}
    faster = pytest.approx(found["joint: images"] / found["reference: images"])
    assert answer["ratios"] == {"joint / reference, images/s": faster, "joint / reference, peak memory": 0.5}
    monkeypatch.setattr(evaluation, "PUBLISHED", {"CUB": TINY_TEST})
    ratios = printed("eval", ("--rounds", "1"), monkeypatch, capsys)["ratios"]
    assert ratios["CUB largest difference of scores"] < 1e-4
    assert abs(ratios["CUB AUSUC exact − sweep"]) < 1e-3
    assert ratios["CUB sweep / exact"] > 0


def test_head_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_benchmark(tmp_path / "data", "SYN")
    monkeypatch.chdir(tmp_path)
    assert printed("head", SMALL, monkeypatch, capsys)["ratios"].keys() == {"ours / plain, images/s"}
    ratios = printed("data", (*SMALL, "--batches", "1"), monkeypatch, capsys)["ratios"]
    sources = ("files", "cached maps")
    assert all(0 <= ratios[f"{source}: waited"] <= 1 for source in sources)
    assert ratios["cached maps: both / files: both, images/s"] > 0


def test_rounds_alternate_and_a_ratio_is_that_of_the_same_round() -> None:
    order: list[str] = []
    works = {name: lambda name=name: float(len(order.append(name) or order)) for name in "ab"}
    assert measure.alternate(works, 3) == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}
    assert order == ["a", "b", "b", "a", "a", "b"]
    ratio = measure.ratio("a / b", [2.0, 20.0, 2.0], [1.0, 10.0, 0.5])
    assert (ratio.median, ratio.min, ratio.max) == (2.0, 2.0, 4.0)
