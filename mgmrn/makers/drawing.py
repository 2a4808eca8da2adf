"""Draws a creature: a made-up bird with traits at several scales, from the ring around its eye to its habitat.

A `Creature` and a random generator determine a picture and the boxes of its parts. P points of an outline, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

OVERSAMPLING = 4
"""Factor by which pictures are drawn larger before they are averaged down: a part of three pixels keeps its shape."""

Colour = tuple[int, int, int]
Points = Float[np.ndarray, "P 2"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the finished picture."""

COLOURS: Mapping[str, Colour] = {
    "red": (214, 40, 40),
    "yellow": (247, 206, 40),
    "blue": (42, 92, 214),
    "green": (34, 150, 72),
    "white": (245, 245, 245),
    "black": (38, 36, 42),
}
"""Palette of all parts: a colour tells an attribute only together with its place."""

OUTLINE: Colour = (28, 24, 26)

TRAITS: Mapping[str, tuple[str, ...]] = {
    "eye": ("red eye ring", "yellow eye ring", "blue eye ring", "white eye ring"),
    "beak shape": ("hooked beak", "long beak", "short beak"),
    "beak": ("red beak", "yellow beak", "blue beak", "black beak"),
    "crown": ("red crown", "yellow crown", "blue crown", "green crown", "black crown"),
    "crest": ("crested crown", "smooth crown"),
    "wing": ("red wing", "yellow wing", "blue wing", "green wing", "white wing"),
    "wing bars": ("barred wing", "plain wing"),
    "tail": ("red tail", "yellow tail", "blue tail", "green tail", "black tail"),
    "tail shape": ("forked tail", "fan tail", "long tail"),
    "body": ("red body", "yellow body", "blue body", "green body", "white body"),
    "body shape": ("slender body", "round body", "upright body"),
    "pattern": ("plain body", "spotted body", "striped body"),
    "habitat": ("water habitat", "forest habitat", "desert habitat", "snow habitat"),
}
"""Names of each trait's values; a creature has one value of each. Finest scale first."""

LARGE_TRAITS: tuple[str, ...] = ("body", "body shape", "pattern", "habitat")
"""Traits that are visible at the scale of the whole picture."""

PARTS: tuple[str, ...] = ("eye", "beak", "crown", "wing", "tail", "body", "habitat")
"""Parts with a box; `habitat` is the whole picture."""

_OTHER_PARTS = {"crest": "crown", "pattern": "body"}
PART_OF_TRAIT: Mapping[str, str] = {trait: _OTHER_PARTS.get(trait, trait.split()[0]) for trait in TRAITS}
"""Part whose box holds each trait."""


@dataclass(frozen=True)
class Creature:
    """The name of one value for every trait of `TRAITS`."""

    values: Mapping[str, str]

    def __post_init__(self) -> None:
        for trait, names in TRAITS.items():
            assert self.values.get(trait) in names, f"{trait} must be one of {names}, got {self.values.get(trait)!r}"

    def word(self, trait: str) -> str:
        """First word of the trait's value: a colour, a shape, a place."""
        return self.values[trait].split()[0]

    def colour(self, part: str) -> Colour:
        return COLOURS[self.word(part)]


@dataclass(frozen=True)
class Picture:
    """A finished drawing."""

    pixels: UInt8[np.ndarray, "H W 3"]
    boxes: Mapping[str, Box]
    """Box of every part of `PARTS`; a hidden part keeps its box."""


@dataclass
class Canvas:
    """The large picture in progress, and the place of the creature on it, in pixels of the canvas."""

    draw: Any
    centre: Float[np.ndarray, " 2"]
    unit: float
    """Pixels of a creature unit; there are about two from tail to beak."""
    tilt: float
    """Radians."""
    mirrored: bool
    boxes: dict[str, Box] = field(default_factory=dict)

    def polygon(self, points: Points, fill: Colour, *, outline: float = 0.03, part: str = "") -> None:
        """A filled, outlined shape in creature units (x forward, y down); the named part's box grows to hold it."""
        x, y = -points[:, 0] if self.mirrored else points[:, 0], points[:, 1]
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        placed = _shape(cos * x - sin * y, sin * x + cos * y) * self.unit + self.centre
        flat = [(float(x), float(y)) for x, y in placed]
        self.draw.polygon(flat, fill=fill)
        if outline:
            width = max(1, round(outline * self.unit))
            self.draw.line([*flat, flat[0], flat[1]], fill=OUTLINE, width=width, joint="curve")
        if part:
            left, top, right, bottom = self.boxes.get(part, (math.inf, math.inf, -math.inf, -math.inf))
            xs, ys = zip(*flat, strict=True)
            self.boxes[part] = min(left, *xs), min(top, *ys), max(right, *xs), max(bottom, *ys)


def draw_creature(creature: Creature, size: int, rng: np.random.Generator) -> Picture:
    """One square picture of a creature; the generator draws pose, scale, light, clutter and occlusion."""
    side = size * OVERSAMPLING
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    _habitat(draw, side, creature.word("habitat"), rng)
    _clutter(draw, side, rng)
    unit = side * rng.uniform(0.35, 0.43)
    centre = np.array([side * 0.5, side * 0.53]) + rng.uniform(-0.05, 0.05, size=2) * side
    canvas = Canvas(draw, centre, unit, tilt=rng.normal(0.0, 0.14), mirrored=rng.random() < 0.5)
    _creature(canvas, creature, rng)
    _occlusion(draw, side, rng)
    pixels = _light(np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32), rng)
    placed = canvas.boxes | {"habitat": (0.0, 0.0, side, side)}
    boxes = {part: tuple(np.clip(np.array(placed[part]) / OVERSAMPLING, 0.0, size).tolist()) for part in PARTS}
    return Picture(pixels, boxes)


def ellipse(
    x: float, y: float, rx: float, ry: float, turn: float = 0.0, arc: tuple[float, float] = (0.0, 1.0)
) -> Points:
    """Outline of an ellipse (or of an arc of it, in turns clockwise from the right), turned by `turn` radians."""
    angle = 2 * math.pi * np.linspace(arc[0], arc[1], 40)
    px, py = rx * np.cos(angle), ry * np.sin(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    return _shape(x + cos * px - sin * py, y + sin * px + cos * py)


def _shape(xs: Any, ys: Any) -> Points:
    return np.stack([xs, ys], axis=1)


def _about(points: Points, pivot: tuple[float, float], turn: float) -> Points:
    cos, sin = math.cos(turn), math.sin(turn)
    offset = points - np.asarray(pivot)
    return np.asarray(offset @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(pivot))


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


_BODIES: Mapping[str, tuple[float, float]] = {"slender": (0.60, 0.30), "round": (0.52, 0.46), "upright": (0.40, 0.54)}
"""Half axes of the body's ellipse."""


def _creature(canvas: Canvas, creature: Creature, rng: np.random.Generator) -> None:
    """Back to front: tail, legs, body, wing, head with beak, crown and eye."""
    body = (-0.10, 0.22)
    axes = _BODIES[creature.word("body shape")]
    head = (0.34 + float(rng.uniform(-0.04, 0.04)), -0.36 + float(rng.uniform(-0.05, 0.05)))
    nod = float(rng.normal(0.0, 0.12))
    _tail(canvas, creature, (body[0] - axes[0] * 0.8, body[1]), float(rng.normal(0.0, 0.15)))
    for x in (-0.12, 0.10):
        foot = body[1] + axes[1] + 0.17
        canvas.polygon(_shape([x, x + 0.05, x + 0.05, x + 0.14, x], [body[1], body[1], foot, foot, foot]), OUTLINE)
    _body(canvas, creature, body, axes, rng)
    _wing(canvas, creature, (body[0] - 0.06, body[1] - 0.02), float(rng.normal(0.25, 0.12)))
    _head(canvas, creature, head, nod)


def _tail(canvas: Canvas, creature: Creature, root: tuple[float, float], swing: float) -> None:
    x, y = root
    shapes = {
        "forked": [
            _shape([x + 0.1, x - 0.52, x - 0.16], [y - 0.12, y - 0.36, y]),
            _shape([x + 0.1, x - 0.52, x - 0.16], [y + 0.12, y + 0.36, y]),
        ],
        "fan": [
            _shape([x + 0.12, x - 0.36, x - 0.52, x - 0.52, x - 0.36], [y, y - 0.40, y - 0.16, y + 0.16, y + 0.40])
        ],
        "long": [
            _shape([x + 0.12, x - 0.68, x - 0.78, x - 0.68, x + 0.12], [y - 0.12, y - 0.13, y, y + 0.13, y + 0.12])
        ],
    }
    for shape in shapes[creature.word("tail shape")]:
        canvas.polygon(_about(shape, root, swing), creature.colour("tail"), part="tail")


def _body(
    canvas: Canvas, creature: Creature, centre: tuple[float, float], axes: tuple[float, float], rng: np.random.Generator
) -> None:
    colour = creature.colour("body")
    mark = _shade(colour, 0.45)
    canvas.polygon(ellipse(*centre, *axes), colour, part="body")
    match creature.word("pattern"):
        case "spotted":
            start = float(rng.uniform(0.0, 6.0))
            for number in range(11):
                # A sunflower's head: the golden angle spreads any number of spots evenly.
                turn, radius = start + 2.4 * number, 0.86 * math.sqrt((number + 0.5) / 11)
                spot = (centre[0] + axes[0] * radius * math.cos(turn), centre[1] + axes[1] * radius * math.sin(turn))
                canvas.polygon(ellipse(*spot, 0.06, 0.06), mark, outline=0.0)
        case "striped":
            for step in np.linspace(-0.72, 0.72, 5):
                half = axes[1] * math.sqrt(1 - step * step) * 0.97
                x = centre[0] + axes[0] * step
                top, bottom = centre[1] - half, centre[1] + half
                stripe = _shape([x - 0.04, x + 0.04, x + 0.04, x - 0.04], [top, top, bottom, bottom])
                canvas.polygon(stripe, mark, outline=0.0)


def _wing(canvas: Canvas, creature: Creature, centre: tuple[float, float], turn: float) -> None:
    x, y = centre
    colour = creature.colour("wing")
    shape = np.concatenate([ellipse(x, y, 0.36, 0.21, arc=(0.55, 1.2)), _shape([x - 0.50], [y + 0.10])])
    canvas.polygon(_about(shape, centre, -turn), colour, part="wing")
    if creature.word("wing bars") == "barred":
        for offset in (-0.16, 0.06):
            left = x + offset
            bar = _shape([left, left + 0.08, left + 0.04, left - 0.04], [y - 0.16, y - 0.16, y + 0.15, y + 0.15])
            canvas.polygon(_about(bar, centre, -turn), OUTLINE, outline=0.0)


def _head(canvas: Canvas, creature: Creature, head: tuple[float, float], nod: float) -> None:
    x, y = head
    r = 0.38
    tip, root = x + r, x + r * 0.80
    beaks = {
        "hooked": _shape(
            [root, tip + 0.18, tip + 0.27, tip + 0.22, tip + 0.08, root],
            [y - 0.12, y - 0.10, y + 0.04, y + 0.24, y + 0.10, y + 0.14],
        ),
        "long": _shape([root, tip + 0.50, tip + 0.50, root], [y - 0.10, y + 0.03, y + 0.07, y + 0.13]),
        "short": _shape([root - 0.02, tip + 0.22, root - 0.02], [y - 0.19, y + 0.03, y + 0.22]),
    }
    canvas.polygon(_about(beaks[creature.word("beak shape")], head, nod), creature.colour("beak"), part="beak")
    canvas.polygon(_about(ellipse(x, y, r, r), head, nod), _shade(creature.colour("body"), 0.92))
    cap = ellipse(x, y, r, r, arc=(0.52, 0.92))
    if creature.word("crest") == "crested":
        spikes = _shape(
            [x + 0.30, x + 0.26, x + 0.06, x - 0.08, x - 0.16, x - 0.46, x - 0.36],
            [y - 0.30, y - 0.62, y - 0.38, y - 0.70, y - 0.34, y - 0.54, y - 0.08],
        )
        canvas.polygon(_about(spikes, head, nod), creature.colour("crown"), part="crown")
    canvas.polygon(_about(cap, head, nod), creature.colour("crown"), part="crown")
    eye = (x + 0.12, y + 0.02)
    canvas.polygon(_about(ellipse(*eye, 0.17, 0.17), head, nod), creature.colour("eye"), part="eye")
    canvas.polygon(_about(ellipse(*eye, 0.07, 0.07), head, nod), OUTLINE, outline=0.0)


_GROUNDS: Mapping[str, tuple[Colour, Colour]] = {
    "water": ((196, 216, 232), (120, 166, 200)),
    "forest": ((176, 196, 160), (112, 132, 92)),
    "desert": ((238, 222, 186), (214, 180, 126)),
    "snow": ((206, 212, 222), (236, 240, 244)),
}
"""Sky and ground of each habitat, paler than any part."""


def _habitat(draw: Any, side: int, place: str, rng: np.random.Generator) -> None:
    sky, ground = (_shade(colour, float(rng.uniform(0.9, 1.08))) for colour in _GROUNDS[place])
    horizon = side * float(rng.uniform(0.45, 0.7))
    draw.rectangle((0, 0, side, side), fill=sky)
    xs = np.linspace(0, side, 24)
    hills = horizon + side * 0.03 * np.sin(xs / side * float(rng.uniform(4, 9)) + float(rng.uniform(0, 6)))
    draw.polygon([*zip(xs.tolist(), hills.tolist(), strict=True), (side, side), (0, side)], fill=ground)
    match place:
        case "water":
            for y in np.linspace(horizon + side * 0.06, side, 5):
                crests = y + side * 0.012 * np.sin(xs / side * 30)
                crest = [*zip(xs.tolist(), crests.tolist(), strict=True)]
                draw.line(crest, fill=_shade(ground, 1.25), width=max(1, side // 60))
        case "forest":
            for x in rng.uniform(0, side, size=5):
                width = side * float(rng.uniform(0.03, 0.06))
                draw.rectangle((x, 0, x + width, horizon + side * 0.1), fill=(124, 104, 84))
        case "desert":
            for x, y in rng.uniform((0, horizon), (side, side), size=(14, 2)):
                draw.ellipse((x, y, x + side * 0.03, y + side * 0.015), fill=_shade(ground, 0.82))
        case "snow":
            for x, y in rng.uniform(0, side, size=(26, 2)):
                draw.ellipse((x, y, x + side * 0.022, y + side * 0.022), fill=(252, 252, 254))


def _clutter(draw: Any, side: int, rng: np.random.Generator) -> None:
    """Berries and leaves in the creature's palette: the share of a colour in the picture tells little of its parts."""
    palette = tuple(COLOURS.values())
    for _ in range(int(rng.integers(4, 10))):
        colour = palette[int(rng.integers(len(palette)))]
        x, y = rng.uniform(0, side, size=2)
        r = side * float(rng.uniform(0.02, 0.05))
        if rng.random() < 0.5:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        else:
            turn = float(rng.uniform(0, math.pi))
            leaf = ellipse(float(x), float(y), 1.6 * r, 0.7 * r, turn)
            draw.polygon([(float(px), float(py)) for px, py in leaf], fill=colour)


def _occlusion(draw: Any, side: int, rng: np.random.Generator) -> None:
    """A twig across a third of the pictures."""
    if rng.random() > 0.33:
        return
    start = (float(rng.uniform(0, side)), side * float(rng.choice((0.0, 1.0))))
    end = (side * float(rng.choice((0.0, 1.0))), float(rng.uniform(0, side)))
    draw.line([start, end], fill=(104, 76, 52), width=max(1, round(side * float(rng.uniform(0.02, 0.05)))))


def _light(pixels: Float[np.ndarray, "H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Exposure, colour of the light, a gradient across the picture and sensor noise."""
    exposure = float(rng.uniform(0.78, 1.12))
    tint = 1.0 + rng.uniform(-0.05, 0.05, size=3)
    across = np.linspace(-1, 1, len(pixels))
    slope = 1.0 + float(rng.uniform(-0.12, 0.12)) * across[:, None] + float(rng.uniform(-0.12, 0.12)) * across[None, :]
    noise = rng.normal(0.0, 3.0, size=pixels.shape)
    return np.asarray(np.clip(pixels * exposure * tint * slope[..., None] + noise, 0, 255).round().astype(np.uint8))
