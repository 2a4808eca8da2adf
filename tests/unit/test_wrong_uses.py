"""Answers to wrong uses: one sentence with what is wrong and its remedy, exit code 2 or 3, and no file left behind.

A row is the typed command, the exit code, and all of standard error. `…` stands for any text.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from pipeline.cli.app import command, main
from tests.commands import VERB

FILES = {
    "bad.yaml": "extends: experiment/synthetic\nloss: {scale: high}\nmodel: {widht: 3}\n",
    "torn.yaml": "loss: {scale: 1\n",
    "space.yaml": "base: synthetic\nspace:\n  loss.scal: {kind: float, low: 1, high: 2}\n",
    "twice.yaml": "base: synthetic\nbenchmarks: [cub, cub]\nvariants: {a: {loss.scale: 1}}\n",
    "note.txt": "x",
}
RUN = "a" * 32

WRONG: list[tuple[str, int, str]] = [
    # Words of the command line.
    ("trian cub", 2, "No such command 'trian'. Did you mean 'train'? (see python -m pipeline --help)"),
    ("data make birds", 2, "No such command 'birds' (see python -m pipeline data make --help)"),
    ("train", 2, "Missing argument 'experiment' (see … train --help)"),
    ("completion", 2, "Missing argument 'shell'. Choose from: bash, zsh (see python -m pipeline completion --help)"),
    ("train cub sun", 2, "Got unexpected extra argument(s) (sun) (see … train --help)"),
    ("train cub --wrokers 2 --json", 2, "No such option: --wrokers (Possible options: --workers) (see … train --help)"),
    ("train cub --seeds", 2, "Option '--seeds' requires an argument"),
    ("train cub --split test", 2, "Invalid value for '--split': Value error, 'test' is not one of 'tune', 'final' (see … train --help)"),
    ("search synthetic-quick --trials many", 2, "Invalid value for '--trials': Input should be a valid integer, … (see … search --help)"),
    ("explain x.pt --per-class 0", 2, "Invalid value for '--per-class': Input should be greater than or equal to 1 (see … explain --help)"),
    ("reproduce x --tolerance -1", 2, "Invalid value for '--tolerance': Input should be greater than or equal to 0 (…)"),
    ("promote", 2, "Missing argument 'RUN' (see python -m pipeline promote --help)"),
    # Names and files.
    ("train cub10", 2, "there is no experiment 'cub10' (did you mean cub100? there are awa2, …, synthetic-eszsl)"),
    ("train none.yaml", 2, "the experiment file none.yaml does not exist"),
    ("search cub100-quik", 2, "there is no search 'cub100-quik' (did you mean cub100-quick? there are cub100, …)"),
    ("plan componentz", 2, "there is no ablation 'componentz' (did you mean components? there are backbones, …)"),
    (
        "plan components --benchmarks cub,cubb", 2,
        "there is no benchmark 'cubb' [--benchmarks] (did you mean cub? there are awa2, …)",
    ),
    (
        "data guide imagenet", 2,
        "there is no guide to imagenet [BENCHMARK] (one of cub, sun, awa2; `data make synthetic` draws one, `data import` takes …)",
    ),
    # Configs.
    ("train cub --set loss.scal=3", 2, "unknown field loss.scal [--set] (did you mean loss.scale?)"),
    ("train cub --set loss.scale", 2, "'loss.scale' is not an override [--set] (write --set section.field=value)"),
    (
        "config show cub --set model.kind=vit", 2,
        "model.kind must be one of 'mgmrn', 'attribute_network', 'eszsl', got 'vit' [--set]",
    ),
    ("train torn.yaml", 2, "not valid YAML: expected ',' or '}', but got '<stream end>' [torn.yaml:2]"),
    (
        "train bad.yaml", 2,
        "2 errors in bad.yaml:\n"
        "  unknown field model.widht [bad.yaml:3] (did you mean model.width?)\n"
        "  loss.scale must be a valid number, got high [bad.yaml:2]",
    ),
    ("search space.yaml", 2, "unknown field loss.scal [space.yaml:3] (did you mean loss.scale?)"),
    ("plan twice.yaml", 2, "benchmarks: one is given twice, got ['cub', 'cub'] [twice.yaml:2]"),
    (
        "train cub --set cache_features=true", 2,
        "config: cache_features needs a frozen backbone (model.backbone.trainable: none) [--set]",
    ),
    (
        "data cache cub",
        2,
        "the experiment caches neither maps nor pictures [cache_features, cache_pictures] "
        "(set cache_features=true, or cache_pictures=true where the backbone is finetuned)",
    ),
    # Values and what goes together.
    ("train cub --seeds 1,1", 2, "seeds must be different and not negative, got '1,1' [--seeds]"),
    ("train cub --seeds 1,,2", 2, "seeds must be whole numbers with commas between, got '1,,2' [--seeds] (like 0,1,2)"),
    ("train cub --seeds=-1", 2, "seeds must be different and not negative, got '-1' [--seeds]"),
    ("train cub --workers 4..2", 2, "workers must be at least 1 and rise in a range, got '4..2' [--workers] (like 2 or 1..4)"),
    (
        "search synthetic-quick --resume --force", 2,
        "--resume and --force were both asked for [--force] (--resume goes on with the earlier search, --force deletes it)",
    ),
    ("compare components --csv --latex", 2, "--csv and --latex were asked for [--latex] (ask for one of them)"),
    ("compare components levels", 2, "cannot compare components, levels [NAME|RUN…] (name one ablation, or ids of runs alone)"),
    ("compare components --metric h", 2, "'h' is no figure [--metric] (name one of zsl_t1, gzsl_u, …)"),
    (
        f"compare {RUN} --benchmarks cub", 2,
        "--benchmarks has no meaning here: runs know their benchmarks [--benchmarks] (leave it out)",
    ),
    (
        "predict x.pt a.jpg --json-lines --json", 2,
        "--json and --json-lines were both asked for [--json-lines] (leave one of them out)",
    ),
    ("explain x.pt --image a.jpg --split test_seen", 2, "--image and --split were both asked for [--split] (leave one of them out)"),
    # Files that do not exist, and servers that do not answer.
    (
        "train synthetic --data-root nowhere", 2,
        "the data root …/nowhere does not exist [--data-root] (give the folder that holds xlsa17/ and the pictures)",
    ),
    ("data make synthetic --out note.txt", 2, "the folder to make is a file [note.txt] (name a new folder)"),
    ("submit predict x", 2, "'predict' does not run as a job [VERB] (submit one of train, search, ablate)"),
    (
        "submit train cub --storage runs", 2,
        "runs would lie in the job's own folder, which goes with the job [--storage] (give an absolute path that every host sees)",
    ),
    (
        "submit train cub --address h:1", 2,
        "a job of train runs on the cluster that it is sent to [--address] (name the cluster's job server before the verb: …)",
    ),
    (
        "logs x --address 127.0.0.1:1", 3,
        "no job server answers at http://127.0.0.1:1 (…) (name the head's with --address http://HOST:8265, or start the cluster)",
    ),
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder of a user."""
    for name in ("MGMRN_DATA_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "MGMRN_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("typed", "code", "sentence"), WRONG, ids=[typed for typed, _, _ in WRONG])
def test_a_wrong_use_is_answered_with_a_sentence(
    typed: str, code: int, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert main(shlex.split(typed)) == code
    printed = capsys.readouterr()
    pattern = "error: " + ".*".join(re.escape(part) for part in sentence.split("…")) + "\n"
    assert re.fullmatch(pattern, printed.err), printed.err
    assert sorted(folder.rglob("*")) == before, "a file was left behind"
    assert (json.loads(printed.out)["error"] in printed.err) if "--json" in typed else printed.out == ""


def test_every_verb_has_a_wrong_use_or_takes_no_argument() -> None:
    named = {typed.split()[0] for typed, _, _ in WRONG}
    assert command.commands.keys() - named == {"demo", "status", "stop", "report", "doctor"}


@pytest.mark.parametrize("group", ["", "data", "data make", "config"])
def test_a_group_without_a_verb_lists_its_verbs(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(group.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"Usage: {VERB}{group}".rstrip()) and "Commands:" in printed.err


def test_programs_get_the_same_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for typed, answer in {
        "train cub --wrokers 2": ("No such option: --wrokers (Possible options: --workers)", "see python -m pipeline train --help"),
        "train cub10": ("there is no experiment 'cub10'", "did you mean cub100? there are awa2"),
    }.items():  # fmt: skip
        assert main([*typed.split(), "--json"]) == 2
        printed = json.loads(capsys.readouterr().out)
        assert printed.keys() == {"error", "where", "hint"}
        assert (printed["error"], printed["hint"][: len(answer[1])]) == answer
