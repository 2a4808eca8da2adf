"""A folder of pictures and a table become a benchmark that loads, trains by the protocol and is checked, or nothing at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgmrn.config import BenchmarkConfig
from mgmrn.data.splits import load_final, load_tune
from mgmrn.data.xlsa17 import load_benchmark
from mgmrn.errors import UserError
from mgmrn.makers.importing import (
    MARKER,
    Imported,
    ImportOptions,
    attribute_vectors,
    import_folder,
    propose,
    read_vectors,
    words_of,
)
from pipeline.cli.app import main

CLASSES = ("owl", "Gull", "kiwi", "wren", "stork", "heron", "swift")
ATTRIBUTES = ("has_bill::long", "webbed feet", "large eyes")
VECTORS = "bill 1 0 0\nlong 0 1 0\nWebbed 0 0 1\nfeet 1 1 0\nlarge 0 1 1\neyes 2 0 0\nhas 0 0 0\n"
PER_CLASS = 6
OPTIONS = ImportOptions("MINE", "error")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pictures, some in folders of folders and of other endings; a table in another order than the folders; vectors."""
    folder = tmp_path / "source"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for number in range(PER_CLASS):
            path = folder / "birds" / name / ("more" if number % 2 else ".") / f"{number}.{'PNG' if number else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (12, 14, 3), dtype=np.uint8)).save(path)
        (folder / "birds" / name / "notes.txt").write_text("no picture")
    rows = rng.random((len(CLASSES), 3)).round(3)
    lines = [
        f"class,{','.join(ATTRIBUTES)}",
        *(f"{c},{','.join(map(str, r))}" for c, r in zip(CLASSES, rows, strict=True)),
    ]
    (folder / "table.csv").write_text("\n".join(lines))
    (folder / "vectors.txt").write_text("7 3\n" + VECTORS)
    return folder


def run(source: Path, root: Path, options: ImportOptions = OPTIONS) -> Imported:
    return import_folder(source / "birds", source / "table.csv", source / "vectors.txt", root, options)


def refused(source: Path, root: Path, match: str, options: ImportOptions = OPTIONS) -> None:
    with pytest.raises(UserError, match=match):
        run(source, root, options)
    assert [path.name for path in root.parent.iterdir()] == ["source"], "nothing is left behind"


def test_what_is_made_loads_as_it_was_described(source: Path, tmp_path: Path) -> None:
    made = run(source, tmp_path / "root")
    config = BenchmarkConfig(name="MINE")
    benchmark = load_benchmark(made.root, config)
    assert benchmark.class_names == CLASSES
    table = np.loadtxt(source / "table.csv", delimiter=",", skiprows=1, usecols=(1, 2, 3))
    np.testing.assert_allclose(benchmark.attributes, table / np.linalg.norm(table, axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(benchmark.word_vectors, [[1 / 3, 1 / 3, 0], [0.5, 0.5, 0.5], [1, 0.5, 0.5]], rtol=1e-6)
    assert len(benchmark.labels) == len(CLASSES) * PER_CLASS
    for file, label in zip(benchmark.image_files, benchmark.labels, strict=True):
        original = source / "birds" / Path(file).relative_to("images")
        assert (benchmark.image_root / file).read_bytes() == original.read_bytes()
        assert Path(file).parts[1] == CLASSES[label]
    final, tune = load_final(made.root, config), load_tune(made.root, config)
    assert (len(final.train), len(final.seen), len(final.unseen)) == (30, 6, 6)
    assert set(made.val) == {tune.classes.names[u] for u in set(tune.unseen.labels.tolist())}
    assert {final.classes.names[u] for u in set(final.unseen.labels.tolist())} == set(made.unseen)
    assert {one.level for one in made.findings} == {"ok"}
    assert (made.root / "attribute_names/MINE/attributes.txt").read_text().splitlines()[1] == "2 webbed feet"


def test_the_same_seed_draws_the_same_and_names_go_before_it(source: Path, tmp_path: Path) -> None:
    labels = np.repeat(np.arange(len(CLASSES)), PER_CLASS)
    once, again = (propose(labels, CLASSES, replace(OPTIONS, seed=3)) for _ in range(2))
    assert all(np.array_equal(once[name], again[name]) for name in once)
    drawn = {tuple(propose(labels, CLASSES, replace(OPTIONS, seed=s))["test_unseen_loc"]) for s in range(8)}
    assert len(drawn) > 1
    made = run(source, tmp_path / "root", replace(OPTIONS, unseen=("owl", "kiwi")))
    assert made.unseen == ("owl", "kiwi")
    assert made.images == {"trainval_loc": 25, "test_seen_loc": 5, "test_unseen_loc": 12, "train_loc": 20, "val_loc": 5}


def test_nothing_is_written_over(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    run(source, root)
    before = sorted(root.rglob("*"))
    with pytest.raises(UserError, match="imported there before"):
        run(source, root)
    assert sorted(root.rglob("*")) == before
    assert json.loads((root / MARKER).read_text())["unknown_words"] == "error"
    with pytest.raises(UserError, match="not empty"):
        run(source, source)


def test_folder_and_table_must_name_the_same_classes(source: Path, tmp_path: Path) -> None:
    (source / "birds" / "emu").mkdir()
    refused(source, tmp_path / "root", "no row for the folder emu")
    (source / "birds" / "emu").rename(source / "emu")
    (source / "birds" / "owl").rename(source / "owl")
    refused(source, tmp_path / "root", "no folder for the class owl")


def test_a_broken_picture_is_named_where_it_stands(source: Path, tmp_path: Path) -> None:
    broken = source / "birds" / "owl" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    refused(source, tmp_path / "root", f"pictures: 1 cannot be decoded: {broken}")


def test_too_little_is_refused(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    refused(source, root, "2 classes would be seen, 3 are needed", replace(OPTIONS, unseen_share=0.7))
    refused(source, root, "no class emu to be unseen", replace(OPTIONS, unseen=("emu",)))
    for path in sorted((source / "birds" / "owl").rglob("*.PNG"))[:4]:
        path.unlink()
    refused(
        source, root, "1 seen classes have fewer than 3 pictures, the first is owl", replace(OPTIONS, unseen=("kiwi",))
    )
    assert run(source, root, replace(OPTIONS, unseen=("owl",))).images["test_unseen_loc"] == 2


@pytest.mark.parametrize("name", ["", "my set", "a/b"])
def test_names_that_are_no_folder_are_refused(source: Path, tmp_path: Path, name: str) -> None:
    refused(source, tmp_path / "root", "cannot be the name", replace(OPTIONS, name=name))


def test_a_folder_that_means_something_else_in_the_layout_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "birds" / "owl" / "more").rename(source / "birds" / "owl" / "images")
    refused(source, tmp_path / "root", "cannot be called so")


def test_attributes_that_training_cannot_teach_are_told(source: Path, tmp_path: Path) -> None:
    lines = [
        f"class,{','.join(ATTRIBUTES)}",
        *(f"{c},1,{0.1 * i + 0.1},{int(c == 'kiwi')}" for i, c in enumerate(CLASSES)),
    ]
    (source / "table.csv").write_text("\n".join(lines))
    made = run(source, tmp_path / "root", replace(OPTIONS, unseen=("kiwi",)))
    (warning,) = [one for one in made.findings if one.level == "warning"]
    assert "1 cannot be learned" in warning.detail and "large eyes" in warning.detail


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("has_bill_shape::curved_(up)", ("has", "bill", "shape", "curved", "up")),
        ("man-made", ("man", "made")),
        ("Öl 3", ("öl", "3")),
    ],
)
def test_words_of_a_name(name: str, words: tuple[str, ...]) -> None:
    assert words_of(name) == words


def test_vectors_are_read_from_both_formats(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("red 1 2\nRed 9 9\n. . . 3 4\nWing 5 6\nblue 7 8\n")
    found = read_vectors(path, {"red", "wing", "green"})
    assert {word: vector.tolist() for word, vector in found.items()} == {"red": [1, 2], "wing": [5, 6]}
    path.write_text("2 3\nred 1 2 3\nblue 4 5 6\n")
    assert read_vectors(path, {"blue"})["blue"].tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no word vectors"),
        ("red 1 2\nblue 3\n", "line 2"),
        ("red x 2\n", "line 1"),
        ("red nan 1\n", "not finite"),
        ("red\n", "line 1"),
    ],
)
def test_broken_vector_files_are_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "v.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=match):
        read_vectors(path, {"red", "blue"})


def test_unknown_words_go_as_they_were_told() -> None:
    vectors = {"red": np.array([1.0, 0.0]), "wing": np.array([0.0, 3.0])}
    names = ("red wing", "red beak", "tail")
    with pytest.raises(UserError, match="no word vectors for beak, tail"):
        attribute_vectors(names, vectors, "error")
    np.testing.assert_allclose(attribute_vectors(names, vectors, "zero"), [[0.5, 1.5], [1, 0], [0, 0]])
    np.testing.assert_allclose(attribute_vectors(names, vectors, "mean"), [[0.5, 1.5], [0.75, 0.75], [0.5, 1.5]])
    with pytest.raises(UserError, match="no word vectors"):
        attribute_vectors(names, {}, "zero")


def test_the_verb_imports_and_verify_agrees(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unseen = source / "unseen.txt"
    unseen.write_text("owl\n\nkiwi\n")
    command = [
        "data", "import", str(source / "birds"), "--classes", str(source / "table.csv"), "--vectors", str(source / "vectors.txt"),
        "--oov", "error", "--name", "MINE", "--out", str(tmp_path / "root"), "--unseen", str(unseen), "--json",
    ]  # fmt: skip
    assert main(command) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["unseen"] == ["owl", "kiwi"] and made["images"]["test_unseen_loc"] == 12
    assert main(["data", "verify", str(tmp_path / "root/MINE.yaml"), "--data-root", str(tmp_path / "root")]) == 0
    assert main(command) == 2
