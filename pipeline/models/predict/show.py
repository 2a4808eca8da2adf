"""Answers as a table: a line per class, with the attributes that decided beside the best one."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.console import Console
from pipeline.models.predict.request import PictureAnswer


def show_answers(answers: Sequence[PictureAnswer], console: Console) -> None:
    """Prints the table, then a sentence for each picture without an answer."""
    rows = [row for one in answers for row in _rows(one)]
    if rows:
        console.table(["picture", "class", "", "score", "decided by"], rows)
    for one in answers:
        if one.error is not None:
            console.line(f"error: {one.error}")


def _rows(one: PictureAnswer) -> list[list[str]]:
    if one.answer is None:
        return []
    decided = ", ".join(f"{found.name} {found.margin:+.2f}" for found in one.answer.attributes)
    return [
        [
            str(one.picture) if rank == 0 else "",
            found.name,
            "seen" if found.seen else "unseen",
            f"{found.score:.2f}",
            decided if rank == 0 else "",
        ]
        for rank, found in enumerate(one.answer.classes)
    ]
