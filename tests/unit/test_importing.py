"""A folder of pictures and a table become a checked benchmark that loads and splits, or nothing at all."""

import gzip
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

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

CLASSES = ("owl", "Gull", "kiwi", "wren", "stork", "heron", "swift")
ATTRIBUTES = ("has_bill::long", "webbed feet", "large eyes")
VECTORS = "7 3\nbill 1 0 0\nlong 0 1 0\nWebbed 0 0 1\nfeet 1 1 0\nlarge 0 1 1\neyes 2 0 0\nhas 0 0 0\n"
PER_CLASS = 6
OPTIONS = ImportOptions("MINE", "error")


def write_table(source: Path, rows: list[tuple[float, ...]]) -> None:
    lines = [",".join(("class", *ATTRIBUTES)), *(",".join(map(str, row)) for row in rows)]
    (source / "table.csv").write_text("\n".join(lines))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Pictures, some in nested folders and of other endings; a table in another order than the folders; vectors."""
    folder = tmp_path / "source"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        for number in range(PER_CLASS):
            path = folder / "birds" / name / ("more" if number % 2 else ".") / f"{number}.{'PNG' if number else 'jpg'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (12, 14, 3), dtype=np.uint8)).save(path)
        (folder / "birds" / name / "notes.txt").write_text("no picture")
    write_table(folder, [(name, *rng.random(3).round(3)) for name in CLASSES])
    (folder / "vectors.txt").write_text(VECTORS)
    return folder


def run(source: Path, root: Path, options: ImportOptions = OPTIONS) -> Imported:
    return import_folder(source / "birds", source / "table.csv", source / "vectors.txt", root, options)


def refused(source: Path, match: str, options: ImportOptions = OPTIONS) -> None:
    with pytest.raises(UserError, match=match):
        run(source, source.parent / "root", options)
    assert [path.name for path in source.parent.iterdir()] == ["source"], "nothing is left behind"


def test_an_imported_benchmark_loads_as_it_was_described(source: Path, tmp_path: Path) -> None:
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
    for split, names in ((tune, made.val), (final, made.unseen)):
        assert {split.classes.names[u] for u in split.unseen.labels} == set(names)
    options = [replace(OPTIONS, seed=seed) for seed in (3, 3, *range(8))]
    drawn = [tuple(propose(benchmark.labels, CLASSES, one)["test_unseen_loc"]) for one in options]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    assert {one.level for one in made.findings} == {"ok"}
    assert (made.root / "attribute_names/MINE/attributes.txt").read_text().splitlines()[1] == "2 webbed feet"
    # A second import changes nothing.
    before = sorted(made.root.rglob("*"))
    with pytest.raises(UserError, match="imported there before"):
        run(source, made.root)
    assert sorted(made.root.rglob("*")) == before
    assert json.loads((made.root / MARKER).read_text())["unknown_words"] == "error"
    with pytest.raises(UserError, match="not empty"):
        run(source, source)


def test_folder_and_table_must_name_the_same_classes(source: Path) -> None:
    (source / "birds" / "emu").mkdir()
    refused(source, "no row for the folder emu")
    (source / "birds" / "emu").rename(source / "emu")
    (source / "birds" / "owl").rename(source / "owl")
    refused(source, "no folder for the class owl")


def test_broken_pictures_and_reserved_folders_are_named_where_they_stand(source: Path) -> None:
    broken = source / "birds" / "owl" / "0.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    refused(source, f"pictures: {broken}: the picture cannot be decoded")
    (source / "birds" / "owl" / "more").rename(source / "birds" / "owl" / "images")
    refused(source, "cannot be called so")


def test_odd_things_among_the_pictures_are_named_or_left_out(source: Path, tmp_path: Path) -> None:
    owls = source / "birds" / "owl"
    for path, sentence in (
        (owls / "pipe.jpg", "this is a pipe"),
        (owls / "loop.png", "Too many levels of symbolic links"),
    ):
        os.mkfifo(path) if path.name == "pipe.jpg" else path.symlink_to(path.name)
        refused(source, sentence)
        path.unlink()
    (owls / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    refused(source, f"{owls}/photo.heic: this is no picture of a known format")
    (owls / "photo.heic").unlink()
    for name in ("._0.jpg", ".DS_Store", os.fsdecode(b"caf\xe9.txt")):
        (owls / name).touch()
    (owls / "folder.jpg").mkdir()
    (source / "birds" / "kiwi" / "more").rename(source / "kiwi")
    (source / "birds" / "kiwi" / "linked").symlink_to(source / "kiwi")
    table = source / "table.csv"
    table.write_text(table.read_text().replace("heron", "héron"), encoding="utf-8")
    (source / "birds" / "heron").rename(source / "birds" / "he\u0301ron")
    made = run(source, tmp_path / "root")
    (left_out,) = [one.detail for one in made.findings if one.check == "left out"]
    assert left_out.startswith("8 files are no pictures of a class: ") and sum(made.images.values()) > 40


def test_impossible_names_and_too_few_classes_or_pictures_are_refused(source: Path, tmp_path: Path) -> None:
    for name in ("", "my set", "a/b"):
        refused(source, "cannot be the name", replace(OPTIONS, name=name))
    refused(source, "2 classes would be seen, 3 are needed", replace(OPTIONS, unseen_share=0.7))
    refused(source, "no class emu to be unseen", replace(OPTIONS, unseen=("emu",)))
    for path in sorted((source / "birds" / "owl").rglob("*.PNG"))[:4]:
        path.unlink()
    few = "1 seen classes have fewer than 3 pictures, the first is owl"
    refused(source, few, replace(OPTIONS, unseen=("kiwi",)))
    assert run(source, tmp_path / "root", replace(OPTIONS, unseen=("owl",))).images["test_unseen_loc"] == 2


def test_attributes_that_cannot_be_learned_are_a_warning(source: Path, tmp_path: Path) -> None:
    write_table(source, [(name, 1, 0.1 * i + 0.1, int(name == "kiwi")) for i, name in enumerate(CLASSES)])
    made = run(source, tmp_path / "root", replace(OPTIONS, unseen=("kiwi",)))
    (warning,) = [one for one in made.findings if one.level == "warning"]
    assert "2 cannot be learned" in warning.detail and "has_bill::long, large eyes" in warning.detail


TEXT = "red 1 2\nRed 9 9\n. . . 3 4\nWing 5 6\nblue 7 8\n"


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.replace("\n", "\r").encode(),
        TEXT.replace(" ", "\t").encode(),
        TEXT.replace(" ", "\t", 1).replace("\n", " \n").encode() + b"\n",
        b"5 2\n" + TEXT.encode(),
        b". . . 3 4\n" + TEXT.encode(),
        b"2000 3 4\n" + TEXT.encode(),
        gzip.compress(TEXT.encode(), mtime=0),
    ],
)
def test_vectors_are_read_from_every_text_format(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    found = read_vectors(tmp_path / "v.txt", {"red", "wing", "green"})
    assert {word: vector.tolist() for word, vector in found.items()} == {"red": [1, 2], "wing": [5, 6]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no word vectors"),
        (b"red 1 2\n\nblue 3\n", "line 3 holds a word and 1 numbers instead of 2"),
        (b"2 3\nred 1 2\n", "line 2 holds a word and 2 numbers instead of 3"),
        (b"red x 2\n", "line 1"),
        (b"red 1 2 x 4\nblue 1 2 3 4\n", "line 1"),
        (b"red nan 1\n", "line 1 holds a number that is not finite"),
        (b"blue 1 2\nred 1e39 1\n", "line 2 holds a number that is not finite in float32"),
        (b"red 1 2\nblue 1 x\n", "line 2"),
        (b"red\n", "line 1"),
        (b"blue 1 2\ngr\xfcn 1 2\n", r"line 2 of the file of word vectors is not UTF-8 text .*v\.txt:2"),
        (b"\xba\x16O/\x0c\0\0\0", "fastText's binary model"),
        (b"\n<!DOCTYPE html>", "a web page"),
        (gzip.compress(TEXT.encode() * 99, mtime=0)[:20] + b"\xff" * 20, "cannot be read"),
    ],
)
def test_broken_vector_files_are_refused(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(UserError, match=match):
        read_vectors(tmp_path / "v.txt", {"red", "blue"})


def test_unknown_words_are_treated_as_chosen() -> None:
    assert words_of("has_bill_shape::curved_(up)") == ("has", "bill", "shape", "curved", "up")
    assert words_of("man-made O\u0308l 3") == ("man", "made", "öl", "3")
    vectors = {"red": np.array([1.0, 0.0]), "wing": np.array([0.0, 3.0])}
    names = ("red wing", "red beak", "tail")
    with pytest.raises(UserError, match="no word vectors for beak, tail"):
        attribute_vectors(names, vectors, "error")
    np.testing.assert_allclose(attribute_vectors(names, vectors, "zero"), [[0.5, 1.5], [1, 0], [0, 0]])
    np.testing.assert_allclose(attribute_vectors(names, vectors, "mean"), [[0.5, 1.5], [0.75, 0.75], [0.5, 1.5]])
    with pytest.raises(UserError, match="no word vectors"):
        attribute_vectors(names, {}, "zero")


def test_the_verb_imports_and_verify_agrees(source: Path, tmp_path: Path, asked: Any) -> None:
    (source / "unseen.txt").write_text("owl\n\nkiwi\n")
    root = tmp_path / "root"
    files = {"--classes": "table.csv", "--vectors": "vectors.txt", "--unseen": "unseen.txt"}
    command = ["data", "import", source / "birds", *["--oov", "error", "--name", "MINE", "--out"], root]
    command += [word for option, file in files.items() for word in (option, str(source / file))]
    code, made, _ = asked(*command)
    assert (code, made["unseen"]) == (0, ["owl", "kiwi"])
    counts = {"trainval_loc": 25, "test_seen_loc": 5, "test_unseen_loc": 12, "train_loc": 20, "val_loc": 5}
    assert made["images"] == counts
    assert asked("data", "verify", root / "MINE.yaml", "--data-root", root)[0] == 0
    assert asked(*command)[0] == 2
