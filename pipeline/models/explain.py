"""Explanations of a model's answers: one HTML page that loads nothing, a contact sheet per class, and both with the run in MLflow.

P: pixels of a side of the network's input. K: regions.
"""

import base64
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mgmrn.atomic_file import replacing
from mgmrn.data.images import prepared
from mgmrn.data.splits import load_final
from pipeline.analysis.page.templates import STYLE, page_template
from pipeline.analysis.runs import LOCALISED
from pipeline.models import reasons
from pipeline.models.localise import ALL_LEVELS, ALL_PARTS, Figures, Split, localise, log_figures, pictures_of, run_of
from pipeline.models.predict import open_model
from pipeline.tracking.environment import git_state

BATCH = 8
UNKNOWN = "pictures"
HERE = Path(__file__).parent
SIDE = 128
FAINTEST, STRENGTH = 0.3, 0.85
"""Share of the picture's colour that a region replaces where all are equally likely, and where it, or attention, is strongest."""
GREY = np.array([0.299, 0.587, 0.114])
ATTRIBUTES = 3
"""Number of deciding attributes whose attention is shown on a sheet."""
MARGIN, LINE = 6, 16
ROW = 3 * LINE + SIDE + MARGIN
"""Height of a sheet's row: a line for the verdict, two for captions, and the tiles."""
CHARACTERS = 20
PAPER, INK = (255, 255, 255), (30, 30, 30)


@dataclass(frozen=True)
class Explanations:
    """Content of the page, and the files."""

    model: str
    benchmark: str
    gamma: float
    classes: Mapping[str, Sequence[reasons.Explained]]
    pointing: Figures
    """Localisation on all pictures of the split; empty for single pictures, and without annotated parts."""
    made_at: str
    commit: str
    page: Path
    sheets: tuple[Path, ...]
    run_id: str | None
    """Run that has page and sheets as artifacts; None for the model of a file or of the registry."""

    @property
    def pictures(self) -> list[reasons.Explained]:
        return [one for pictures in self.classes.values() for one in pictures]

    @property
    def overall(self) -> Mapping[str, float]:
        """Figures of all levels and parts together; empty without any."""
        return self.pointing[ALL_LEVELS][ALL_PARTS] if self.pointing else {}

    def to_json(self) -> dict[str, Any]:
        return {
            "page": str(self.page),
            "sheets": [str(sheet) for sheet in self.sheets],
            "run_id": self.run_id,
            "pictures": [
                {
                    "image": str(one.subject.path),
                    "truth": one.subject.truth,
                    "class": one.best.name,
                    "runner_up": one.runner_up.name,
                    "margin": one.margin,
                    "handicap": one.handicap,
                    "others": one.others,
                    "attributes": {reason.attribute: dict(reason.by_level) for reason in one.reasons},
                }
                for one in self.pictures
            ],
            "pointing_accuracy": self.overall.get("pointing"),
            "pointing_chance": self.overall.get("pointing_chance"),
            "pointing": self.pointing,
        }


def run_explain(
    name: str,
    images: Sequence[Path],
    split: Split,
    per_class: int,
    out: Path,
    tracking_uri: str,
    data_root: Path,
    progress: Callable[[str], Callable[[int, int], None]] = lambda what: lambda done, total: None,
) -> Explanations:
    """Explain pictures with the model that `open_model` finds by its name, and write page and sheets into the folder `out`.

    Without images, the first pictures of each class of the split are explained, and localisation is measured on all of its pictures. Raises
    `UserError` for a model without attention, or a picture or data set that cannot be read, and `TrackingError` when the store is unreachable,
    or does not have the run or model.
    """
    model = open_model(name, tracking_uri)
    reasons.check_explainable(model)
    figures: Figures = {}
    if images:
        subjects = [reasons.Subject(path, path.name, None) for path in images]
    else:
        data = load_final(data_root, model.config.benchmark)
        pool = pictures_of(data, split)
        subjects = [
            reasons.Subject(pool.path(row), pool.files[row], data.classes.names[label])
            for label in np.unique(pool.labels)
            for row in np.flatnonzero(pool.labels == label)[:per_class].tolist()
        ]
    classes: dict[str, list[reasons.Explained]] = {}
    config, show = model.config.benchmark.images, progress("pictures")
    for start in range(0, len(subjects), BATCH):
        batch = subjects[start : start + BATCH]
        for one in reasons.explain(model, batch, torch.stack([prepared(one.path, config) for one in batch])):
            classes.setdefault(one.subject.truth or UNKNOWN, []).append(one)
        show(start + len(batch), len(subjects))
    if not images:
        figures = localise(model, data, split, progress("localisation"))
    tracked = run_of(name, tracking_uri)
    made = Explanations(
        model=name,
        benchmark=model.config.benchmark.name,
        gamma=model.gamma,
        classes=classes,
        pointing=figures,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git_state().sha,
        page=out / "index.html",
        sheets=tuple(out / "sheets" / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', title)}.png" for title in classes),
        run_id=tracked[1].run_id if tracked else None,
    )
    with replacing(made.page) as file:
        file.write(render(made).encode())
    for sheet, (title, pictures) in zip(made.sheets, classes.items(), strict=True):
        with replacing(sheet) as file:
            contact_sheet(title, pictures).save(file, format="PNG", optimize=True)
    if tracked:
        store, run = tracked
        log_figures(store, run, split, figures)
        store.log_file(run.run_id, made.page, "explain")
        for sheet in made.sheets:
            store.log_file(run.run_id, sheet, "explain/sheets")
    return made


def render(content: Explanations) -> str:
    """The page as text."""
    filters = (plain_tile, region_tile, attention_tile, data_uri)
    style = "\n".join(path.read_text(encoding="utf-8") for path in (STYLE, HERE / "explain.css"))
    return page_template(HERE / "explain.html.j2", filters).render(
        content=content,
        known=sum(one.subject.truth is not None for one in content.pictures),
        right=sum(one.subject.truth == one.best.name for one in content.pictures),
        decisive=reasons.DECISIVE,
        figures=LOCALISED,
        style=Markup(style),
    )


def contact_sheet(title: str, pictures: Sequence[reasons.Explained]) -> Any:
    """Image with a row for each picture of one class: the picture and the maps of every level."""
    rows = [list(_captioned_tiles(one)) for one in pictures]
    width = MARGIN + max(map(len, rows)) * (SIDE + MARGIN)
    sheet = Image.new("RGB", (width, 2 * LINE + len(rows) * ROW), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    draw.text((MARGIN, MARGIN), title, INK, font=ImageFont.load_default(size=14))
    for number, (one, tiles) in enumerate(zip(pictures, rows, strict=True)):
        top = 2 * LINE + number * ROW
        draw.text((MARGIN, top), verdict(one), INK, font=font)
        for column, (captions, tile) in enumerate(tiles):
            left = MARGIN + column * (SIDE + MARGIN)
            for line, caption in enumerate(captions, start=1):
                shown = caption if len(caption) <= CHARACTERS else f"{caption[: CHARACTERS - 1]}…"
                draw.text((left, top + line * LINE), shown, INK, font=font)
            sheet.paste(tile, (left, top + 3 * LINE))
    return sheet


def verdict(one: reasons.Explained) -> str:
    """The answer in a line, like `wrong: gull (unseen) rather than owl (seen) by 1.20`."""
    truth = one.subject.truth
    right = "" if truth is None else "right: " if truth == one.best.name else "wrong: "
    best, other = (f"{found.name} ({'seen' if found.seen else 'unseen'})" for found in (one.best, one.runner_up))
    return f"{right}{best} rather than {other} by {one.margin:.2f}"


def _captioned_tiles(one: reasons.Explained) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield ("picture",), plain_tile(one.pixels)
    for maps in one.levels:
        if maps.regions is not None:
            yield (maps.level, "regions"), region_tile(one.pixels, maps.regions)
        for neighbour, shares in maps.used.items():
            yield (maps.level, f"used of {neighbour}"), region_tile(one.pixels, shares)
        for reason, attention in zip(one.reasons[:ATTRIBUTES], maps.attention, strict=False):
            # An attribute like `has_throat_color::black` has a subject and a value.
            words = reason.attribute.removeprefix("has_").replace("_", " ")
            subject, _, value = words.rpartition("::")
            yield (f"{maps.level} {subject}".strip(), value), attention_tile(one.pixels, attention)


def plain_tile(pixels: UInt8[np.ndarray, "P P 3"]) -> Any:
    """The picture itself."""
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def attention_tile(pixels: UInt8[np.ndarray, "P P 3"], attention: Float[Tensor, "P P"]) -> Any:
    """The picture in grey with attention as heat, relative to the largest attention in the picture."""
    share = (attention / attention.max().clamp_min(1e-12)).numpy()
    return _covered(pixels, colormaps["inferno"](share)[..., :3], STRENGTH * share)


def region_tile(pixels: UInt8[np.ndarray, "P P 3"], regions: Float[Tensor, "K P P"]) -> Any:
    """The picture in grey, each pixel in the colour of its largest region, stronger for a more certain assignment."""
    largest, owner = (found.numpy() for found in regions.max(dim=0))
    sureness = np.clip((largest - 1 / len(regions)) / (1 - 1 / len(regions)), 0, 1)
    return _covered(pixels, colormaps["tab10"](owner % 10)[..., :3], FAINTEST + (STRENGTH - FAINTEST) * sureness)


def data_uri(tile: Any) -> str:
    """A tile as a JPEG in a data URI."""
    encoded = io.BytesIO()
    tile.save(encoded, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _covered(
    pixels: UInt8[np.ndarray, "P P 3"], colours: Float[np.ndarray, "P P 3"], share: Float[np.ndarray, "P P"]
) -> Any:
    """Tile of the picture in grey, of which each pixel's share is replaced by a colour."""
    cover = share[..., None]
    mixed = (pixels @ GREY)[..., None] * (1 - cover) + 255 * colours * cover
    return plain_tile(np.clip(mixed, 0, 255).astype(np.uint8))
