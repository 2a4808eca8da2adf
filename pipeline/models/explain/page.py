"""The page of explanations: one file that loads nothing, in the style of the page of ablations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from pipeline.analysis.page.page import HERE as SHARED
from pipeline.analysis.page.page import page_template
from pipeline.models.explain import tiles
from pipeline.models.explain.explained import DECISIVE, Explained
from pipeline.models.explain.pointing import ALL_LEVELS, ALL_PARTS, Pointing

HERE = Path(__file__).parent


@dataclass(frozen=True)
class ClassOfPictures:
    """Pictures that stand together."""

    name: str
    pictures: tuple[Explained, ...]


@dataclass(frozen=True)
class Content:
    """All that the page shows."""

    model: str
    benchmark: str
    standin: bool
    gamma: float
    classes: tuple[ClassOfPictures, ...]
    pointing: Mapping[str, Mapping[str, Pointing]] | None
    """Level → part; None without boxes of parts."""
    made_at: str
    commit: str

    @property
    def pictures(self) -> list[Explained]:
        """Of all classes."""
        return [one for of_class in self.classes for one in of_class.pictures]

    @property
    def overall(self) -> Pointing | None:
        """Of all levels and parts together."""
        return self.pointing[ALL_LEVELS][ALL_PARTS] if self.pointing else None

    @property
    def count(self) -> int:
        """Of the pictures."""
        return len(self.pictures)

    @property
    def known(self) -> int:
        """Pictures whose class is known."""
        return sum(one.subject.truth is not None for one in self.pictures)

    @property
    def right(self) -> int:
        """Pictures that were taken for what they are."""
        return sum(one.subject.truth == one.best.name for one in self.pictures)


def render(content: Content) -> str:
    """The page as text."""
    helpers = (signed, why, tiles.plain_tile, tiles.region_tile, tiles.attention_tile, tiles.data_uri)
    style = "\n".join((folder / "style.css").read_text(encoding="utf-8") for folder in (SHARED, HERE))
    return page_template(HERE, helpers).render(content=content, decisive=DECISIVE, style=Markup(style))


def signed(value: float) -> str:
    """A number behind its sign, with a minus that is as wide as a plus."""
    return f"{value:+.2f}".replace("-", "−")


def why(one: Explained) -> str:
    """The answer in a sentence or two."""
    speaking_for = [reason for reason in one.reasons if reason.total > 0]
    against = [reason for reason in one.reasons if reason.total < 0]
    text = f"{one.best.name} rather than {one.runner_up.name} by {one.margin:.2f}."
    for words, reasons in ((f"For {one.best.name}", speaking_for), (f"for {one.runner_up.name}", against)):
        if reasons:
            listed = ", ".join(f"{reason.attribute} {signed(reason.total)}" for reason in reasons[:3])
            text += f" {words[0].upper()}{words[1:]} speak {listed}."
    if one.handicap:
        better_off = one.best if one.handicap > 0 else one.runner_up
        text += f" Of the two, {better_off.name} is unseen, which γ is worth {abs(one.handicap):.2f} to it."
    if one.subject.truth is not None and one.subject.truth != one.best.name:
        text += f" It is {one.subject.truth}."
    return text
