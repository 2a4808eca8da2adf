"""Explanations add up to what the network computed, and cells and boxes lie where their pixels are."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgmrn.config import BackboneConfig, BackboneName, ImageConfig, Level, MgMRNConfig, RefinementConfig
from mgmrn.data.images import for_evaluation
from mgmrn.explanation import best_two, contributions, look
from mgmrn.localisation import Cells, box_on_input, halved, on_input, stage_cells
from mgmrn.model.backbone import build_backbone
from mgmrn.model.granularity import halve
from mgmrn.model.network import MgMRN, class_scores
from tests.tiny import small_network

LEVELS: tuple[Level, ...] = ("c3", "c4", "c5")
SIZE = 64
TRUNKS = ("resnet18", "mobilenet_v2", "convnext_tiny", "swin_t", "timm/resnet18", "timm/tf_efficientnet_lite0")
TRUNKS += ("timm/convnext_atto", "timm/swin_tiny_patch4_window7_224", "timm/densenet121", "timm/pvt_v2_b0")
CHANNELS: dict[Level, int] = {"c3": 12, "c4": 10, "c5": 16}
SIZE = 96


def network(topology: str, regions: str = "regions", temperature: str = "none") -> tuple[MgMRN, MgMRNConfig]:
    torch.manual_seed(0)
    parts = {
        "refinement": RefinementConfig(topology=topology),
        "backbone": BackboneConfig(name="resnet18", weights="none"),
    }
    config = small_network(regions=regions, temperature=temperature, levels=LEVELS, **parts)
    head = MgMRN(config, CHANNELS, torch.randn(7, 5))
    for name, parameter in head.decoders.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return head.eval(), config


def maps(c4: int = 6) -> dict[Level, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sides = {"c3": 12, "c4": c4, "c5": 3}
    return {n: torch.randn(2, CHANNELS[n], sides[n], sides[n], generator=generator) for n in LEVELS}


NETWORKS: list[Any] = [
    *((topology, regions, "none", 6) for topology in ("none", "cascade") for regions in ("regions", "tokens")),
    ("adjacent", "tokens", "none", 5),  # Grids of two levels differ by a cell.
    ("adjacent", "none", "learned", 6),
    ("cascade", "released", "sqrt", 6),
    ("regions", "tokens", "none", 6),
]


@pytest.mark.parametrize(("topology", "regions", "temperature", "c4"), NETWORKS)
def test_attention_and_evidence_give_the_attributes(topology: str, regions: str, temperature: str, c4: int) -> None:
    head, config = network(topology, regions, temperature)
    views = look(head, config, maps(c4), SIZE)
    with torch.inference_mode():
        output = head(maps(c4))
    for level in LEVELS:
        torch.testing.assert_close(views[level].attributes, output.attributes[level], rtol=1e-5, atol=1e-5)
        total = views[level].attention_on_input(1, range(7), SIZE).sum(dim=(1, 2))
        torch.testing.assert_close(total, torch.ones(7))
        found = views[level].regions
        assert (found is None) == (level not in output.regions)
        if found is not None:
            torch.testing.assert_close(found.values, output.regions[level].assignment)


def test_the_regions_of_neighbours_that_a_pixel_used_are_shown() -> None:
    head, config = network("regions")
    views = look(head, config, maps(), SIZE)
    assert {level: set(view.used) for level, view in views.items()} == {"c3": {"c4"}, "c4": {"c3", "c5"}, "c5": {"c4"}}
    shares = torch.cat([one.values for one in views["c4"].used.values()], dim=1)
    assert shares.shape == (2, 6, 3, 3), "the regions of both neighbours, on the level's own grid"
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, 3, 3))
    assert not look(*network("adjacent"), maps(), SIZE)["c4"].used


def test_attention_to_a_region_lies_where_the_region_is() -> None:
    head, config = network("none", "tokens")
    view = look(head, config, maps(), SIZE)["c4"]
    own, of_regions = view.attention
    assert view.regions is not None
    assert own.values.shape[-1] == 3 and of_regions.values.shape[-1] == view.regions.values.shape[-1] == 6
    rest = 1 - own.values.sum(dim=(2, 3))
    torch.testing.assert_close(of_regions.values.sum(dim=(2, 3)), rest)
    assert rest.min() > 0


def centres(cells: Cells) -> Tensor:
    """Centres of all cells."""
    return cells.first + cells.step * torch.arange(cells.count, dtype=torch.float32)


def test_contributions_add_up_to_the_scores_and_to_their_margin() -> None:
    generator = torch.Generator().manual_seed(2)
    attributes: dict[Level, Tensor] = {level: torch.randn(4, 6, generator=generator) for level in LEVELS}
    classes = torch.rand(9, 6, generator=generator)
    seen = np.arange(9) < 5
    scores = class_scores(attributes, classes, 20.0).numpy()
    rows, calibrated = np.arange(4), scores - 3.0 * seen
    firsts = best_two(scores, seen, 3.0)
    best, second = firsts.T
    assert (best == calibrated.argmax(axis=1)).all()
    np.testing.assert_array_equal(calibrated[rows, second], np.sort(calibrated, axis=1)[:, -2])
    of_best, of_second = (contributions(attributes, classes[one], 20.0) for one in (best, second))
    np.testing.assert_allclose(of_best.sum(dim=(1, 2)), scores[rows, best], rtol=1e-4)
    margins = calibrated[rows, best] - calibrated[rows, second] + 3.0 * (seen[best].astype(float) - seen[second])
    np.testing.assert_allclose((of_best - of_second).sum(dim=(1, 2)), margins, rtol=1e-4)


@pytest.mark.parametrize(("name", "size"), [*((name, 64) for name in TRUNKS), ("timm/tf_efficientnet_lite0", 65)])
def test_a_cell_lies_at_the_pixels_that_change_it(name: BackboneName, size: int) -> None:
    torch.manual_seed(3)
    levels: tuple[Level, ...] = ("c2", "c3")
    backbone = build_backbone(BackboneConfig(name=name, weights="none"), levels).eval()
    images = torch.randn(4, 3, size, size, requires_grad=True)
    maps = backbone(images)
    for level in levels:
        cells = stage_cells(name, level, maps[level].shape[-1], size)
        y, x = cells.count // 2, cells.count // 2 - 1
        (gradient,) = torch.autograd.grad(maps[level][:, :, y, x].square().sum(), images, retain_graph=True)
        weight = gradient.square().sum(dim=(0, 1))
        pixels = torch.arange(size) + 0.5
        found_y, found_x = (float((weight.sum(dim=axis) * pixels).sum() / weight.sum()) for axis in (1, 0))
        off = max(abs(found_y - float(centres(cells)[y])), abs(found_x - float(centres(cells)[x])))
        # Random weights lean to one side; the wrong rule would be off by half a stride.
        assert off < 0.3 * cells.step, (level, found_y, found_x, cells)


@pytest.mark.parametrize("count", [1, 2, 5, 8, 29])
def test_cells_are_halved_as_maps_are(count: int) -> None:
    cells = Cells(count, 0.5, 4.0)
    torch.testing.assert_close(halve(centres(cells).expand(1, 1, count, count))[0, 0, 0], centres(halved(cells)))


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
def test_a_box_moves_with_its_pixels(resize: str, width: int, height: int) -> None:
    config = ImageConfig(size=64, resize=resize, mean=(0, 0, 0), std=(1, 1, 1))
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    picture[:, 30:42, 20:40] = 255
    shown = for_evaluation(picture, config)[0] > 0.5
    rows, columns = shown.any(dim=1).nonzero().flatten(), shown.any(dim=0).nonzero().flatten()
    found = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
    assert found == pytest.approx(box_on_input((20.0, 30.0, 40.0, 42.0), width, height, config), abs=1.0)
