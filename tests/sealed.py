"""Attempts to reach the test sets in a sealed process of its own: `python -m tests.sealed FOLDER`, as `tests/unit/test_seal.py` runs it.

Prints for each attempt the exception that it met, and what of the test sets its answer led to.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.io import loadmat

from mgmrn import feed
from mgmrn.checkpoint import load_model, load_state
from mgmrn.config import BenchmarkConfig, ExperimentConfig
from mgmrn.data import doctor, splits, xlsa17
from mgmrn.data.seal import close_seal
from mgmrn.data.splits import FinalData, TuneData
from mgmrn.makers.standin import make_standin
from mgmrn.makers.synthetic import creature_classes, make_synthetic
from mgmrn.protocol import load_evaluation
from pipeline.cli.data_verbs import build_caches
from pipeline.config.compose import ComposedConfig
from pipeline.launch import TrainRequest, run_experiment
from pipeline.storage import StoragePath
from pipeline.train.fit import Fitted, fit
from pipeline.train.placement import Placement, Workers
from pipeline.train.spec import RunSpec
from pipeline.trials.trial import SealedPlan
from pipeline.where import Where
from tests.tiny import UNSEEN, lists

IMAGES = {"size": 32, "resize": "squash", "flip": False}
TINY = BenchmarkConfig.model_validate({"name": "TINY", "tune_seen_fraction": 0.25, "images": IMAGES})
MODEL = {"kind": "mgmrn", "backbone": {"name": "resnet18", "weights": "none"}, "levels": ["c2"], "width": 32}
CONFIG = ExperimentConfig.model_validate({"benchmark": TINY, "model": MODEL, "cache_features": True})
TEST_IDS = np.concatenate([lists()["test_seen_loc"], lists()["test_unseen_loc"]])


def reachable(value: Any, met: set[int]) -> Iterator[Any]:
    """Every object that attributes, containers, array bases and closures lead to."""
    if id(value) in met:
        return
    met.add(id(value))
    yield value
    if isinstance(value, type):
        children = [member for member in vars(value).values() if not callable(member)]
    elif isinstance(value, np.ndarray):
        children = [value.base, *(value.tolist() if value.dtype == object else ())]
    elif isinstance(value, dict):
        children = [*value, *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        children = list(value)
    elif dataclasses.is_dataclass(value):
        children = [getattr(value, field.name) for field in dataclasses.fields(value)]
        children.append(type(value))
    elif callable(value):
        children = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    else:
        children = list(getattr(value, "__dict__", {}).values())
    for child in children:
        yield from reachable(child, met)


@dataclasses.dataclass(frozen=True)
class Secrets:
    """Content of the test sets, read from the files themselves."""

    words: frozenset[str]
    """Unseen classes, and files of test images."""
    attributes: np.ndarray
    """Unit rows of the unseen classes."""
    labels: np.ndarray
    """Labels of all images."""

    @classmethod
    def of(cls, root: Path) -> Secrets:
        folder = root / "xlsa17" / "data" / "TINY"
        images, splits = loadmat(folder / "res101.mat"), loadmat(folder / "att_splits.mat")
        names = [str(cell[0]) for cell in splits["allclasses_names"].ravel()]
        files = [str(cell[0]).partition("/TINY/")[2] for cell in images["image_files"].ravel()]
        attributes = (splits["att"] / np.linalg.norm(splits["att"], axis=0)).T[list(UNSEEN)]
        words = {names[label] for label in UNSEEN} | {files[image] for image in TEST_IDS}
        return cls(frozenset(words), attributes, images["labels"].ravel().astype(int) - 1)

    def found_in(self, answer: Any) -> list[str]:
        found = []
        for value in reachable(answer, set()):
            if isinstance(value, FinalData):
                found.append("the final split")
            if isinstance(value, str):
                found += [word for word in self.words if word in value]
            if isinstance(value, splits.Images) and np.isin(value.ids, TEST_IDS).any():
                found.append("a test image's position")
            if isinstance(value, xlsa17.Benchmark) and np.isin([*chain(*value.lists.values())], TEST_IDS).any():
                found.append("a test list")
            if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
                found += self._numbers_in(value)
        return found

    def _numbers_in(self, array: np.ndarray) -> Iterator[str]:
        if array.shape == self.labels.shape and (array[TEST_IDS] == self.labels[TEST_IDS]).any():
            yield "a test image's label"
        for rows in (array, array.T) if array.ndim == 2 else ():
            if rows.shape[1] == self.attributes.shape[1]:
                with np.errstate(invalid="ignore", divide="ignore"):
                    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
                if any(np.isclose(unit, row, atol=1e-4).all(axis=1).any() for row in self.attributes):
                    yield "an unseen class's attributes"


def load_tune(folder: Path) -> TuneData:
    return splits.load_tune(folder / "data", TINY)


def load_tune_with_other_options(folder: Path) -> list[TuneData]:
    fractions = (TINY.model_copy(update={"tune_seen_fraction": 0.9, "tune_split_seed": seed}) for seed in range(3))
    return [splits.load_tune(folder / "data", config) for config in fractions]


def classes_of_a_benchmark(folder: Path) -> Any:
    benchmark = xlsa17.load_benchmark(folder / "data", TINY)
    parts = [np.unique(benchmark.labels[benchmark.lists[name]]) for name in ("trainval_loc", "test_unseen_loc")]
    return [parts, [benchmark.class_names[label] for label in parts[1]], benchmark]


def final_data_made_by_hand(folder: Path) -> FinalData:
    tune = load_tune(folder)
    return FinalData(**{field.name: getattr(tune, field.name) for field in dataclasses.fields(tune)})


def cached_maps(folder: Path) -> Any:
    maps = feed.cached_maps(CONFIG, load_tune(folder), folder / "cache", torch.device("cpu"), lambda message: None)
    for part in maps:
        assert len(part.views["c2"][0]) == len(lists()["trainval_loc"]), "one row for each image of trainval"
        assert part.rows.max() < len(lists()["trainval_loc"])
    return maps


def final_spec_in_a_plan(folder: Path) -> Any:
    placement = {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}
    plan = {"number": 0, "runs": [json.loads((folder / "final.json").read_text())], "placement": placement}
    return SealedPlan.model_validate_json(json.dumps(plan))


def train_on_final(folder: Path) -> Any:
    """Its workers would be processes of their own, which are not sealed."""
    return list(fit(RunSpec.model_validate_json((folder / "final.json").read_text()), Placement(1, 1, 0)))


def train_as_the_command_does(folder: Path) -> Any:
    where = Where(f"sqlite:///{folder}/mlflow.db", folder / "data", StoragePath.parse(folder / "runs"), None, 1, 0)
    return run_experiment(TrainRequest("x", ComposedConfig("x", CONFIG, {}), None, (0,), Workers(1, 1), where))


ALLOWED: dict[str, Callable[[Path], Any]] = {
    "load_tune": load_tune,
    "load_tune_with_other_options": load_tune_with_other_options,
    "classes_of_a_benchmark": classes_of_a_benchmark,
    "verify": lambda folder: doctor.verify(folder / "data", TINY),
    "evaluation_of_a_tune_run": lambda folder: load_evaluation(folder / "tune" / "evaluation.npz"),
    "cached_maps": cached_maps,
}
REFUSED: dict[str, Callable[[Path], Any]] = {
    "load_final": lambda folder: splits.load_final(folder / "data", TINY),
    "final_data_of_a_benchmark": lambda folder: splits.final_data(xlsa17.load_benchmark(folder / "data", TINY)),
    "final_data_made_by_hand": final_data_made_by_hand,
    "final_data_from_another_process": lambda folder: pickle.loads((folder / "final.pickle").read_bytes()),
    "read_the_lists": lambda folder: xlsa17.read_lists(folder / "data", "TINY"),
    "make_a_standin": lambda folder: make_standin("cub", folder / "cub", folder / "new", per_class=1, size=32),
    "draw_the_synthetic_benchmark": lambda folder: make_synthetic(folder / "synthetic", per_class=5, size=32),
    "classes_of_the_synthetic_benchmark": lambda folder: creature_classes(0),
    "evaluation_of_a_final_run": lambda folder: load_evaluation(folder / "final" / "evaluation.npz"),
    "result_of_a_final_run": lambda folder: Fitted.from_checkpoint(StoragePath(str(folder / "final")), {"epoch": 1}),
    "model_of_a_final_run": lambda folder: load_model(folder / "final" / "model.pt"),
    "state_of_that_model": lambda folder: load_state(folder / "final" / "model.pt"),
    "caches_of_both_splits": lambda folder: build_caches(CONFIG, folder / "data", folder / "cache", lambda said: None),
    "train_on_final": train_on_final,
    "train_as_the_command_does": train_as_the_command_does,
}
ATTEMPTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{name: (attempt, "") for name, attempt in ALLOWED.items()},
    **{name: (attempt, "SealedError") for name, attempt in REFUSED.items()},
    "final_spec_in_a_plan": (final_spec_in_a_plan, "ValidationError"),
}
"""Name of an attempt → the attempt, and the error that refuses it."""


def main(folder: Path) -> None:
    secrets = Secrets.of(folder / "data")
    close_seal()
    close_seal()  # A second time changes nothing.
    met = {}
    for name, (attempt, _) in ATTEMPTS.items():
        try:
            met[name] = {"raised": "", "found": secrets.found_in(attempt(folder))}
        except Exception as error:
            met[name] = {"raised": type(error).__name__, "found": [], "message": str(error)[:200]}
    (folder / "sealed_tune.pickle").write_bytes(pickle.dumps(load_tune(folder)))
    json.dump(met, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
