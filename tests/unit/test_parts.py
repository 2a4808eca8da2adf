"""Annotated parts: read from CUB's files, drawings and stand-ins, and found by a map's peak as the published definitions say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mgmrn.config import BenchmarkConfig, ImageConfig
from mgmrn.data.images import for_evaluation
from mgmrn.data.splits import Images, load_final
from mgmrn.errors import UserError
from mgmrn.localisation import box_on_input, hits
from mgmrn.makers.drawing import PART_OF_TRAIT, PARTS, TRAITS
from mgmrn.makers.standin import make_standin
from mgmrn.makers.synthetic import ATTRIBUTE_NAMES, make_synthetic
from mgmrn.parts import Part, read_parts
from tests.tiny import write_benchmark

BIRD = ("has_bill_shape::hooked", "has_bill_shape::dagger", "has_wing_color::blue", "has_upper_tail_color::red")
BIRD = (
    *BIRD,
    "has_bill_length::long",
    "has_size::small",
    "has_primary_color::red",
    "has_shape::owl-like",
    "has_leg_color::red",
)


def images_of(root: Path, *files: str) -> Images:
    return Images(root, files, np.zeros(len(files), dtype=int), np.arange(len(files)))


@pytest.fixture
def cub(tmp_path: Path) -> Images:
    """CUB's files of two pictures, of a third that is not asked for, and of parts without the legs."""
    folder = tmp_path / "CUB_200_2011"
    (folder / "parts").mkdir(parents=True)
    (folder / "images.txt").write_text("1 a/x.jpg\n2 a/y z.jpg\n3 a/other.jpg\n")
    (folder / "bounding_boxes.txt").write_text("1 10.0 20.0 80.0 40.0\n2 0.0 0.0 60.0 60.0\n3 0 0 8 8\n")
    (folder / "parts" / "parts.txt").write_text("1 beak\n2 left wing\n3 right wing\n4 tail\n")
    rows = ["1 1 50.0 30.0 1", "1 2 0.0 0.0 0", "1 3 20.0 25.0 1", "2 1 5.0 5.0 1", "2 9 5.0 5.0 1", "3 4 1.0 1.0 1"]
    (folder / "parts" / "part_locs.txt").write_text("\n".join([*rows, "7 1 5.0 5.0 1", "2 4 9.0 9.0 1", ""]))
    return images_of(tmp_path, "CUB_200_2011/images/a/x.jpg", "CUB_200_2011/images/a/y z.jpg")


def test_cubs_files_are_read_and_attributes_name_their_parts(cub: Images) -> None:
    parts = read_parts(cub, BIRD)
    assert parts is not None and list(parts.pictures) == list(cub.files)
    assert parts.pictures[cub.files[0]] == {
        "beak": Part((50.0, 30.0), (20.0, 10.0)),
        "right wing": Part((20.0, 25.0), (20.0, 10.0)),
    }
    assert parts.pictures[cub.files[1]] == {
        "beak": Part((5.0, 5.0), (15.0, 15.0)),
        "tail": Part((9.0, 9.0), (15.0, 15.0)),
    }
    assert [(group.part, group.annotated, rows) for group, rows in parts.groups.items()] == [
        ("beak", ("beak",), [0, 1]),
        ("wing", ("left wing", "right wing"), [2]),
        ("tail", ("tail",), [3]),
        ("beak", ("beak",), [4]),
    ]
    (cub.root / "CUB_200_2011" / "bounding_boxes.txt").unlink()
    parts = read_parts(cub, BIRD)
    assert parts is not None
    assert parts.pictures[cub.files[0]]["beak"].box(200, 100) == (25, 17.5, 75, 42.5), (
        "pictures are cropped to the bird"
    )
    assert (
        read_parts(cub, ("wings", "beak")) is None
        and read_parts(images_of(cub.root / "X", "images/1.jpg"), BIRD) is None
    )


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "parts/part_locs.txt",
            "1 1 50.0 30.0 1\n1 2 50.0\n",
            r"line 2 does not hold the 5 columns of CUB's part_locs\.txt",
        ),
        ("parts/parts.txt", "one beak\n", r"line 1 does not hold the 2 columns of CUB's parts\.txt"),
        ("images.txt", "version https://git-lfs.github.com/spec/v1\n", "the table is a git-lfs pointer"),
        ("bounding_boxes.txt", "1 0 0 8 8 8\n", "line 1 does not hold the 5 columns"),
    ],
)
def test_files_that_are_not_cubs_are_named(cub: Images, name: str, text: str, sentence: str) -> None:
    (cub.root / "CUB_200_2011" / name).write_text(text)
    with pytest.raises(UserError, match=sentence) as caught:
        read_parts(cub, BIRD)
    assert name in caught.value.where


def test_a_box_near_the_edge_is_moved_into_the_picture() -> None:
    assert Part((2.0, 50.0)).box(100, 60) == (0, 42.5, 25, 57.5) and Part((50.0, 59.0)).box(100, 60) == (
        37.5,
        45,
        62.5,
        60,
    )


def test_parts_of_drawings_are_those_that_were_drawn(tmp_path: Path) -> None:
    root = make_synthetic(tmp_path / "root", per_class=5, size=32)
    images = load_final(root, BenchmarkConfig(name="SYN")).unseen
    parts = read_parts(images, [name.replace(" ", "_") for name in ATTRIBUTE_NAMES])
    assert parts is not None and set(parts.pictures) == set(images.files)
    drawn = json.loads((root / "SYN" / "parts.json").read_text())
    for file, found in parts.pictures.items():
        boxes = {name: part.box(32, 32) for name, part in found.items()}
        for name, box in drawn[file.removeprefix("images/")]["boxes"].items():
            assert boxes[name] == pytest.approx(box, abs=1e-9)
    traits = [trait for trait in TRAITS if trait != "habitat"]
    assert [(one.part, [ATTRIBUTE_NAMES[row] for row in rows]) for one, rows in parts.groups.items()] == [
        (PART_OF_TRAIT[trait], list(TRAITS[trait])) for trait in traits
    ]
    assert PART_OF_TRAIT.keys() == TRAITS.keys() and {one.part for one in parts.groups} == {*PARTS} - {"habitat"}
    for text in ("[1]", '{"001.a/x.jpg": {}}'.replace("001.a/x.jpg", images.files[0].removeprefix("images/")), "{"):
        (root / "SYN" / "parts.json").write_text(text)
        with pytest.raises(UserError, match="the annotated parts cannot be read"):
            read_parts(images, ["red_beak"])


def test_parts_of_a_stand_in_are_the_cells_of_its_quilt(tmp_path: Path) -> None:
    source = write_benchmark(tmp_path / "source", "CUB", pictures=False)
    make_standin("cub", source, tmp_path / "root", size=48, per_class=1)
    images = load_final(tmp_path / "root", BenchmarkConfig(name="CUB-standin")).unseen
    parts = read_parts(images, [f"attribute {number}" for number in range(7)])
    assert parts is not None and set(parts.pictures) == set(images.files)
    assert [(one.part, one.annotated, rows) for one, rows in parts.groups.items()] == [
        ("cell", ("0",), [0, 1, 2]),
        ("cell", ("1",), [3, 4, 5]),
        ("cell", ("2",), [6]),
    ]
    for row, file in enumerate(images.files):
        with Image.open(images.path(row)) as picture:
            pixels = np.asarray(picture).astype(float)
        for part in parts.pictures[file].values():
            left, top, right, bottom = map(round, part.box(48, 48))
            # A cell has one colour, but for noise and the format.
            assert pixels[top + 1 : bottom - 1, left + 1 : right - 1].std(axis=(0, 1)).max() < 12
        assert sum(np.prod(part.size) for part in parts.pictures[file].values()) == 48 * 48


def corners(centre: tuple[float, float], sides: tuple[float, float], size: int) -> tuple[float, float, float, float]:
    """A box around a point, moved into the picture."""
    left, top = (min(max(middle - side / 2, 0), size - side) for middle, side in zip(centre, sides, strict=True))
    return left, top, left + sides[0], top + sides[1]


def iou(one: Any, other: Any) -> float:
    """Intersection over union as it is written."""
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


SIZE = 24
BOXES = st.tuples(
    st.floats(0, SIZE), st.floats(0, SIZE), st.floats(1, SIZE, width=32), st.floats(1, SIZE, width=32)
).map(lambda x: corners(x[:2], x[2:], SIZE))


@given(boxes=st.lists(BOXES, min_size=1, max_size=3), x=st.integers(0, SIZE - 1), y=st.integers(0, SIZE - 1))
def test_a_peak_hits_as_the_definitions_say(boxes: list[Any], x: int, y: int) -> None:
    pointing, located = hits(torch.tensor(boxes), SIZE)[:, y, x].tolist()
    peak = (x + 0.5, y + 0.5)
    assert pointing == any(one[0] <= peak[0] <= one[2] and one[1] <= peak[1] <= one[3] for one in boxes)
    best = max(iou(corners(peak, (one[2] - one[0], one[3] - one[1]), SIZE), one) for one in boxes)
    if abs(best - 0.5) > 1e-4:
        assert located == (best >= 0.5)


def test_chance_is_the_share_of_random_peaks_that_hit() -> None:
    boxes = [(2.0, 3.0, 9.0, 8.0), (15.0, 16.0, 24.0, 24.0)]
    chance = hits(torch.tensor(boxes), SIZE).float().mean(dim=(1, 2))
    rng = np.random.default_rng(0)
    found = []
    for x, y in rng.integers(SIZE, size=(4000, 2)) + 0.5:
        moved = [corners((x, y), (one[2] - one[0], one[3] - one[1]), SIZE) for one in boxes]
        inside = any(one[0] <= x <= one[2] and one[1] <= y <= one[3] for one in boxes)
        found.append((inside, any(iou(other, one) >= 0.5 for other, one in zip(moved, boxes, strict=True))))
    np.testing.assert_allclose(np.mean(found, axis=0), chance, atol=0.025)
    assert 0.03 < chance[1] < chance[0] < 0.25


SIDES = st.integers(40, 120)


@given(width=SIDES, height=SIDES, x=st.floats(0, 1), y=st.floats(0, 1), resize=st.sampled_from(["squash", "crop"]))
def test_the_box_of_a_point_is_where_the_network_sees_the_point(
    width: int, height: int, x: float, y: float, resize: Any
) -> None:
    config = ImageConfig(size=64, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    box = Part((x * width, y * height)).box(width, height)
    left, top, right, bottom = box_on_input(box, width, height, config)
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    picture[:, round(box[1]) : round(box[3]), round(box[0]) : round(box[2])] = 255
    shown = for_evaluation(picture, config)[0] > 0.5
    rows, columns = shown.any(dim=1).nonzero().flatten(), shown.any(dim=0).nonzero().flatten()
    # Two pixels: the drawn box has whole pixels of the file, and pixels between are averaged.
    if right - left > 4 and bottom - top > 4:
        found = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
        assert found == pytest.approx((left, top, right, bottom), abs=2.0)
    mirrored = box_on_input((width - box[2], box[1], width - box[0], box[3]), width, height, config)
    assert mirrored == pytest.approx((64 - right, top, 64 - left, bottom), abs=1e-6), "mirrored with its picture"
