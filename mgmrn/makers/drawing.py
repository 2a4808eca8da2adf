"""Draws a creature: a made-up bird with traits at several scales, from the ring around its eye to its habitat.

Pure: a `Creature` and a random generator give a picture and the boxes of its parts. What a trait's values are called is
`TRAITS`; which class shows which of them, and how often, is `synthetic.py`.
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
"""Pictures are drawn this many times larger and averaged down, so that a part of three pixels still has a shape."""

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
"""One palette for all parts: a colour alone says nothing, only where it sits does."""

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
"""Trait → names of its values; a creature has one value of each. Finest scale first."""

LARGE_TRAITS: tuple[str, ...] = ("body", "body shape", "pattern", "habitat")
"""Traits that a glance at the whole picture gives away."""

PARTS: tuple[str, ...] = ("eye", "beak", "crown", "wing", "tail", "body", "habitat")
"""Parts that get a box; `habitat` is the whole picture."""

PART_OF_TRAIT: Mapping[str, str] = {
    "eye": "eye",
    "beak shape": "beak",
    "beak": "beak",
    "crown": "crown",
    "crest": "crown",
    "wing": "wing",
    "wing bars": "wing",
    "tail": "tail",
    "tail shape": "tail",
    "body": "body",
    "body shape": "body",
    "pattern": "body",
    "habitat": "habitat",
}
"""Trait → part whose box holds it."""


@dataclass(frozen=True)
class Creature:
    """What a picture shows: for every trait of `TRAITS` the name of one value."""

    values: Mapping[str, str]

    def __post_init__(self) -> None:
        for trait, names in TRAITS.items():
            assert self.values.get(trait) in names, f"{trait} must be one of {names}, got {self.values.get(trait)!r}"

    def word(self, trait: str) -> str:
        """First word of the trait's value: a colour, a shape, a place."""
        return self.values[trait].split()[0]

    def colour(self, part: str) -> Colour:
        """Colour of a part that has one."""
        return COLOURS[self.word(part)]


@dataclass(frozen=True)
class Picture:
    """A finished drawing."""

    pixels: UInt8[np.ndarray, "H W 3"]
    boxes: Mapping[str, Box]
    """Box of every part of `PARTS`; a part that something hides keeps the box where it would be."""


@dataclass(frozen=True)
class Pose:
    """Where the creature stands: creature units (about two from tail to beak) to pixels of the large canvas."""

    centre: tuple[float, float]
    unit: float
    tilt: float
    """Radians."""
    mirrored: bool

    def place(self, points: Points) -> Points:
        """Creature coordinates (x forward, y down) to canvas pixels."""
        x = -points[:, 0] if self.mirrored else points[:, 0]
        y = points[:, 1]
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        turned = np.stack([cos * x - sin * y, sin * x + cos * y], axis=1)
        return np.asarray(turned * self.unit + np.asarray(self.centre))


@dataclass
class Canvas:
    """The large picture in progress."""

    draw: Any
    pose: Pose
    boxes: dict[str, Box] = field(default_factory=dict)

    def polygon(self, points: Points, fill: Colour, *, outline: float = 0.03, part: str = "") -> None:
        """A filled, outlined shape in creature coordinates; the named part's box grows to hold it."""
        placed = self.pose.place(points)
        flat = [(float(x), float(y)) for x, y in placed]
        self.draw.polygon(flat, fill=fill)
        if outline:
            self.draw.line(
                [*flat, flat[0], flat[1]], fill=OUTLINE, width=max(1, round(outline * self.pose.unit)), joint="curve"
            )
        if part:
            self._grow(part, placed)

    def _grow(self, part: str, placed: Points) -> None:
        left, top = placed.min(axis=0)
        right, bottom = placed.max(axis=0)
        known = self.boxes.get(part, (math.inf, math.inf, -math.inf, -math.inf))
        self.boxes[part] = (
            min(known[0], float(left)),
            min(known[1], float(top)),
            max(known[2], float(right)),
            max(known[3], float(bottom)),
        )


def draw_creature(creature: Creature, size: int, rng: np.random.Generator) -> Picture:
    """One picture of a creature: pose, scale, light, clutter and occlusion come from the generator.

    Args:
        creature: what to show.
        size: side of the square picture in pixels.
        rng: source of everything that the traits leave open.
    """
    side = size * OVERSAMPLING
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    _habitat(draw, side, creature.word("habitat"), rng)
    _clutter(draw, side, rng)
    canvas = Canvas(draw, _pose(side, rng))
    _creature(canvas, creature, rng)
    _occlusion(draw, side, rng)
    pixels = _light(np.asarray(image.reduce(OVERSAMPLING), dtype=np.float32), rng)
    limit = float(size)
    boxes = {
        part: tuple(float(np.clip(edge / OVERSAMPLING, 0.0, limit)) for edge in box)
        for part, box in canvas.boxes.items()
    }
    boxes["habitat"] = (0.0, 0.0, limit, limit)
    return Picture(pixels, {part: boxes[part] for part in PARTS})  # type: ignore[misc]


def ellipse(
    x: float, y: float, rx: float, ry: float, turn: float = 0.0, arc: tuple[float, float] = (0.0, 1.0)
) -> Points:
    """Outline of an ellipse (or of an arc of it, in turns clockwise from the right), turned by `turn` radians."""
    angle = 2 * math.pi * np.linspace(arc[0], arc[1], 40)
    px, py = rx * np.cos(angle), ry * np.sin(angle)
    cos, sin = math.cos(turn), math.sin(turn)
    return np.stack([x + cos * px - sin * py, y + sin * px + cos * py], axis=1)


def _points(*pairs: tuple[float, float]) -> Points:
    return np.asarray(pairs, dtype=np.float64)


def _about(points: Points, pivot: tuple[float, float], turn: float) -> Points:
    """Points turned about a pivot."""
    cos, sin = math.cos(turn), math.sin(turn)
    offset = points - np.asarray(pivot)
    return np.asarray(offset @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(pivot))


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


def _pose(side: int, rng: np.random.Generator) -> Pose:
    unit = side * rng.uniform(0.35, 0.43)
    shift = rng.uniform(-0.05, 0.05, size=2) * side
    return Pose(
        centre=(side * 0.5 + float(shift[0]), side * 0.53 + float(shift[1])),
        unit=float(unit),
        tilt=float(rng.normal(0.0, 0.14)),
        mirrored=bool(rng.random() < 0.5),
    )


_BODIES: Mapping[str, tuple[float, float]] = {"slender": (0.60, 0.30), "round": (0.52, 0.46), "upright": (0.40, 0.54)}
"""Half axes of the body's ellipse."""

_HEAD_RADIUS = 0.38


def _creature(canvas: Canvas, creature: Creature, rng: np.random.Generator) -> None:
    """Back to front: tail, legs, body, wing, head with beak, crown and eye."""
    body = (-0.10, 0.22)
    axes = _BODIES[creature.word("body shape")]
    head = (0.34 + float(rng.uniform(-0.04, 0.04)), -0.36 + float(rng.uniform(-0.05, 0.05)))
    nod = float(rng.normal(0.0, 0.12))
    _tail(canvas, creature, (body[0] - axes[0] * 0.8, body[1]), float(rng.normal(0.0, 0.15)))
    for x in (-0.12, 0.10):
        foot = body[1] + axes[1] + 0.17
        canvas.polygon(
            _points((x, body[1]), (x + 0.05, body[1]), (x + 0.05, foot), (x + 0.14, foot), (x, foot)), OUTLINE
        )
    _body(canvas, creature, body, axes, rng)
    _wing(canvas, creature, (body[0] - 0.06, body[1] - 0.02), float(rng.normal(0.25, 0.12)))
    _head(canvas, creature, head, nod)


def _tail(canvas: Canvas, creature: Creature, root: tuple[float, float], swing: float) -> None:
    x, y = root
    shapes = {
        "forked": [
            _points((x + 0.1, y - 0.12), (x - 0.52, y - 0.36), (x - 0.16, y + 0.0)),
            _points((x + 0.1, y + 0.12), (x - 0.52, y + 0.36), (x - 0.16, y - 0.0)),
        ],
        "fan": [
            _points(
                (x + 0.12, y), (x - 0.36, y - 0.40), (x - 0.52, y - 0.16), (x - 0.52, y + 0.16), (x - 0.36, y + 0.40)
            )
        ],
        "long": [
            _points(
                (x + 0.12, y - 0.12), (x - 0.68, y - 0.13), (x - 0.78, y), (x - 0.68, y + 0.13), (x + 0.12, y + 0.12)
            )
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
                stripe = _points(
                    (x - 0.04, centre[1] - half),
                    (x + 0.04, centre[1] - half),
                    (x + 0.04, centre[1] + half),
                    (x - 0.04, centre[1] + half),
                )
                canvas.polygon(stripe, mark, outline=0.0)


def _wing(canvas: Canvas, creature: Creature, centre: tuple[float, float], turn: float) -> None:
    x, y = centre
    colour = creature.colour("wing")
    shape = np.concatenate([ellipse(x, y, 0.36, 0.21, arc=(0.55, 1.2)), _points((x - 0.50, y + 0.10))])
    canvas.polygon(_about(shape, centre, -turn), colour, part="wing")
    if creature.word("wing bars") == "barred":
        for offset in (-0.16, 0.06):
            bar = _points(
                (x + offset, y - 0.16),
                (x + offset + 0.08, y - 0.16),
                (x + offset + 0.04, y + 0.15),
                (x + offset - 0.04, y + 0.15),
            )
            canvas.polygon(_about(bar, centre, -turn), OUTLINE, outline=0.0)


def _head(canvas: Canvas, creature: Creature, head: tuple[float, float], nod: float) -> None:
    x, y = head
    r = _HEAD_RADIUS
    tip, root = x + r, x + r * 0.80
    beaks = {
        "hooked": _points(
            (root, y - 0.12),
            (tip + 0.18, y - 0.10),
            (tip + 0.27, y + 0.04),
            (tip + 0.22, y + 0.24),
            (tip + 0.08, y + 0.10),
            (root, y + 0.14),
        ),
        "long": _points((root, y - 0.10), (tip + 0.50, y + 0.03), (tip + 0.50, y + 0.07), (root, y + 0.13)),
        "short": _points((root - 0.02, y - 0.19), (tip + 0.22, y + 0.03), (root - 0.02, y + 0.22)),
    }
    canvas.polygon(_about(beaks[creature.word("beak shape")], head, nod), creature.colour("beak"), part="beak")
    canvas.polygon(_about(ellipse(x, y, r, r), head, nod), _shade(creature.colour("body"), 0.92))
    cap = ellipse(x, y, r, r, arc=(0.52, 0.92))
    if creature.word("crest") == "crested":
        spikes = _points(
            (x + 0.30, y - 0.30),
            (x + 0.26, y - 0.62),
            (x + 0.06, y - 0.38),
            (x - 0.08, y - 0.70),
            (x - 0.16, y - 0.34),
            (x - 0.46, y - 0.54),
            (x - 0.36, y - 0.08),
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
"""Sky and ground, paler than any part."""


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
                draw.line(
                    [*zip(xs.tolist(), crests.tolist(), strict=True)],
                    fill=_shade(ground, 1.25),
                    width=max(1, side // 60),
                )
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
    """Berries and leaves in the creature's own palette, behind it: a count of colours tells little of its parts."""
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
    """In a third of the pictures a twig crosses the view."""
    if rng.random() > 0.33:
        return
    start = (float(rng.uniform(0, side)), side * float(rng.choice((0.0, 1.0))))
    end = (side * float(rng.choice((0.0, 1.0))), float(rng.uniform(0, side)))
    draw.line([start, end], fill=(104, 76, 52), width=max(1, round(side * float(rng.uniform(0.02, 0.05)))))


def _light(pixels: Float[np.ndarray, "H W 3"], rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Exposure, colour of the light, a gradient across the picture and sensor noise."""
    size = len(pixels)
    exposure = float(rng.uniform(0.78, 1.12))
    tint = 1.0 + rng.uniform(-0.05, 0.05, size=3)
    across = np.linspace(-1, 1, size)
    slope = 1.0 + float(rng.uniform(-0.12, 0.12)) * across[:, None] + float(rng.uniform(-0.12, 0.12)) * across[None, :]
    noise = rng.normal(0.0, 3.0, size=pixels.shape)
    return np.asarray(np.clip(pixels * exposure * tint * slope[..., None] + noise, 0, 255).round().astype(np.uint8))
