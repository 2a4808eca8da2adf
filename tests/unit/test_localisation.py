"""Cells lie where their receptive fields are centred, boxes follow the picture, and a peak in a box is a hit."""

from __future__ import annotations

import pytest
import torch

from mgmrn.config import BackboneConfig, BackboneName, ImageConfig, Level
from mgmrn.data.images import for_evaluation
from mgmrn.localisation import Cells, box_on_input, chance_of, halved, on_input, points_at, stage_cells
from mgmrn.model.backbone import build_backbone
from mgmrn.model.granularity import halve


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny", "swin_t"])
def test_a_cell_is_where_the_pixels_are_that_move_it(name: BackboneName) -> None:
    torch.manual_seed(0)
    levels: tuple[Level, ...] = ("c2", "c3")
    backbone = build_backbone(BackboneConfig(name=name, weights="none"), levels).eval()
    images = torch.randn(4, 3, 64, 64, requires_grad=True)
    maps = backbone(images)
    for level in levels:
        cells = stage_cells(name, level, maps[level].shape[-1])
        y, x = cells.count // 2, cells.count // 2 - 1
        (gradient,) = torch.autograd.grad(maps[level][:, :, y, x].square().sum(), images, retain_graph=True)
        weight = gradient.square().sum(dim=(0, 1))
        pixels = torch.arange(64) + 0.5
        found_y = float((weight.sum(dim=1) * pixels).sum() / weight.sum())
        found_x = float((weight.sum(dim=0) * pixels).sum() / weight.sum())
        off = max(abs(found_y - float(cells.centres[y])), abs(found_x - float(cells.centres[x])))
        # Random weights lean to one side; half a stride is what the wrong rule would be off by.
        assert off < 0.3 * cells.step, (level, found_y, found_x, cells)


@pytest.mark.parametrize("count", [2, 5, 8, 29])
def test_cells_are_halved_as_maps_are(count: int) -> None:
    cells = Cells(count, 0.5, 4.0)
    positions = cells.centres.expand(1, 1, count, count)
    torch.testing.assert_close(halve(positions)[0, 0, 0], halved(cells).centres)
    assert halved(Cells(1, 0.5, 4.0)).count == 1


def test_a_map_keeps_its_sum_and_peaks_at_the_centre_of_its_largest_cell() -> None:
    cells = Cells(4, 2.0, 4.0)
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 2], maps[1, 3, 0] = 0.7, 0.2
    spread = on_input(maps, cells, 16)
    torch.testing.assert_close(spread.sum(dim=(1, 2)), torch.tensor([0.7, 0.2]))
    assert (spread >= 0).all()
    # The centre of a cell lies between two pixels.
    assert divmod(int(spread[0].argmax()), 16) in {(y, x) for y in (5, 6) for x in (9, 10)}
    even = on_input(torch.full((4, 4), 0.5), cells, 16)
    torch.testing.assert_close(even, even[0, 0].expand(16, 16))


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize(("width", "height"), [(60, 90), (90, 60)])
def test_a_box_goes_where_its_pixels_go(resize: str, width: int, height: int) -> None:
    config = ImageConfig(size=64, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    box = (20.0, 30.0, 40.0, 42.0)
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    picture[:, 30:42, 20:40] = 255
    shown = for_evaluation(picture, config)[0] > 0.5
    left, top, right, bottom = box_on_input(box, width, height, config)
    rows, columns = shown.any(dim=1).nonzero().flatten(), shown.any(dim=0).nonzero().flatten()
    found = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
    assert found == pytest.approx([left, top, right, bottom], abs=1.0)


def test_a_box_that_is_cropped_away_is_empty() -> None:
    config = ImageConfig(size=64, resize="crop")
    box = torch.tensor([box_on_input((0.0, 0.0, 10.0, 50.0), 200, 64, config)])
    assert chance_of(box, 64).item() == 0
    assert not points_at(torch.rand(1, 64, 64), box).item()


def test_pointing() -> None:
    maps = torch.zeros(2, 8, 8)
    maps[0, 2, 5], maps[1, 7, 0] = 1.0, 1.0
    boxes = torch.tensor([[5.0, 2.0, 8.0, 4.0], [1.0, 0.0, 8.0, 8.0]])
    assert points_at(maps, boxes).tolist() == [True, False]
    torch.testing.assert_close(chance_of(boxes, 8), torch.tensor([6 / 64, 56 / 64]))
