"""Whether the attention of an attribute falls on its part, where boxes of parts are known: the pointing game."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from mgmrn.config import ImageConfig, Level
from mgmrn.data.parts import Parts, part_of
from mgmrn.explanation import LevelView
from mgmrn.localisation import box_on_input, chance_of, points_at
from pipeline.models.explain.explained import Subject

ALL_LEVELS = "all levels"
ALL_PARTS = "all parts"


@dataclass(frozen=True)
class Pointed:
    """One attribute of one picture."""

    level: str
    part: str
    hit: bool
    chance: float
    """Share of the input that the part's box covers."""


@dataclass(frozen=True)
class Pointing:
    """How often attention's largest pixel lies in the part's box."""

    accuracy: float
    chance: float
    """How often a random pixel would."""
    maps: int

    @property
    def ratio(self) -> float:
        """Accuracy in units of chance."""
        return self.accuracy / self.chance if self.chance else 0.0


def point(
    views: Mapping[Level, LevelView],
    subjects: Sequence[Subject],
    parts: Mapping[str, Parts],
    names: Sequence[str],
    config: ImageConfig,
) -> list[Pointed]:
    """Every attribute that each picture shows, on each level and on all together.

    Args:
        views: of the batch.
        subjects: its pictures.
        parts: by file.
        names: of the attributes, in their order.
        config: how the pictures became inputs.
    """
    rows = {name.replace("_", " "): number for number, name in enumerate(names)}
    found = []
    for image, subject in enumerate(subjects):
        shown = {name: box for name, box in parts[subject.file].shown().items() if name in rows}
        if not shown:
            continue
        with Image.open(subject.path) as picture:
            width, height = picture.size
        boxes = torch.tensor([box_on_input(box, width, height, config) for box in shown.values()])
        chances = chance_of(boxes, config.size).tolist()
        chosen = [rows[name] for name in shown]
        maps = {str(level): view.attention_on_input(image, chosen, config.size) for level, view in views.items()}
        maps[ALL_LEVELS] = torch.stack(list(maps.values())).sum(dim=0)
        for level, attention in maps.items():
            for name, hit, chance in zip(shown, points_at(attention, boxes).tolist(), chances, strict=True):
                found.append(Pointed(level, str(part_of(name)), hit, chance))
    return found


def summarise(pointed: Sequence[Pointed]) -> Pointing:
    """All of them together."""
    count = len(pointed)
    return Pointing(sum(one.hit for one in pointed) / count, sum(one.chance for one in pointed) / count, count)


def by_part(pointed: Sequence[Pointed]) -> dict[str, dict[str, Pointing]]:
    """Level → part → what it came to; all of each together first."""
    levels = dict.fromkeys(one.level for one in pointed)
    parts = dict.fromkeys(one.part for one in pointed)
    of_level = {level: [one for one in pointed if one.level == level] for level in levels}
    return {
        level: {
            ALL_PARTS: summarise(found),
            **{part: summarise([one for one in found if one.part == part]) for part in parts},
        }
        for level, found in of_level.items()
    }
