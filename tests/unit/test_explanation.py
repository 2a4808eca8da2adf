"""What is said of an image is what the network computed: the same attribute vectors, the same scores, in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mgmrn.config import BackboneConfig, Level, MgMRNConfig, RefinementConfig
from mgmrn.explanation import contributions, decide, decisive, look
from mgmrn.model.network import MgMRN, class_scores
from tests.tiny import small_network

LEVELS: tuple[Level, ...] = ("c3", "c4", "c5")
CHANNELS: dict[Level, int] = {"c3": 12, "c4": 10, "c5": 16}
SIDES = {"c3": 12, "c4": 6, "c5": 3}
SIZE = 96


def network(topology: str, regions: str = "regions", temperature: str = "none") -> tuple[MgMRN, MgMRNConfig]:
    torch.manual_seed(0)
    config = small_network(
        regions=regions,
        temperature=temperature,
        levels=LEVELS,
        refinement=RefinementConfig(topology=topology),
        backbone=BackboneConfig(name="resnet18", weights="none"),
    )
    head = MgMRN(config, CHANNELS, torch.randn(7, 5))
    for decoder in head.decoders.values():
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return head.eval(), config


def maps(**sides: int) -> dict[Level, Tensor]:
    chosen = SIDES | sides
    generator = torch.Generator().manual_seed(1)
    return {
        level: torch.randn(2, CHANNELS[level], chosen[level], chosen[level], generator=generator) for level in LEVELS
    }


NETWORKS: list[Any] = [
    *((topology, regions, "none") for topology in ("none", "cascade", "adjacent") for regions in ("regions", "tokens")),
    ("adjacent", "none", "learned"),
    ("cascade", "released", "sqrt"),
]


@pytest.mark.parametrize(("topology", "regions", "temperature"), NETWORKS)
def test_what_was_looked_at_and_read_gives_the_attributes_of_the_network(
    topology: str, regions: str, temperature: str
) -> None:
    head, config = network(topology, regions, temperature)
    views = look(head, config, maps())
    with torch.inference_mode():
        output = head(maps())
    for level in LEVELS:
        torch.testing.assert_close(views[level].attributes, output.attributes[level], rtol=1e-5, atol=1e-5)
        total = views[level].attention_on_input(1, range(7), SIZE).sum(dim=(1, 2))
        torch.testing.assert_close(total, torch.ones(7))
        found = views[level].regions
        assert (found is None) == (level not in output.regions)
        if found is not None:
            torch.testing.assert_close(found.values, output.regions[level].assignment)


def test_levels_whose_grids_differ_by_a_cell_are_put_side_by_side() -> None:
    head, config = network("adjacent")
    odd = maps(c4=5)
    views = look(head, config, odd)
    with torch.inference_mode():
        expected = head(odd).attributes
    for level in LEVELS:
        torch.testing.assert_close(views[level].attributes, expected[level], rtol=1e-5, atol=1e-5)
        assert len(views[level].attention) == (3 if level == "c4" else 2)


def test_attention_to_a_region_lies_where_the_region_is() -> None:
    head, config = network("none", "tokens")
    view = look(head, config, maps())["c4"]
    own, of_regions = view.attention
    assert view.regions is not None
    assert own.values.shape[-1] == 3 and of_regions.values.shape[-1] == view.regions.values.shape[-1] == 6
    rest = 1 - own.values.sum(dim=(2, 3))
    torch.testing.assert_close(of_regions.values.sum(dim=(2, 3)), rest)
    assert rest.min() > 0


def test_contributions_add_up_to_the_scores_and_to_their_margin() -> None:
    generator = torch.Generator().manual_seed(2)
    attributes: dict[Level, Tensor] = {level: torch.randn(4, 6, generator=generator) for level in LEVELS}
    classes = torch.rand(9, 6, generator=generator)
    seen = np.arange(9) < 5
    scores = class_scores(attributes, classes, 20.0).numpy()
    for image in range(4):
        decision = decide(scores[image], seen, 3.0)
        calibrated = scores[image] - 3.0 * seen
        assert decision.best == calibrated.argmax()
        assert calibrated[decision.runner_up] == np.sort(calibrated)[-2]
    best, second = (classes[torch.full((4,), one)] for one in (decision.best, decision.runner_up))
    parts = contributions(attributes, best, 20.0)
    assert parts.shape == (4, 3, 6)
    np.testing.assert_allclose(parts.sum(dim=(1, 2)), scores[:, decision.best], rtol=1e-5)
    difference = (parts - contributions(attributes, second, 20.0))[image]
    assert difference.sum() + decision.handicap == pytest.approx(decision.margin, rel=1e-4)


def test_decisive_attributes_are_those_of_the_largest_difference_for_either_class() -> None:
    assert decisive(np.array([0.1, -3.0, 2.0, 0.0, 2.0]), 3).tolist() == [1, 2, 4]
