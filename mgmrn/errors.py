"""Exceptions that the command line answers with one sentence: wrong input, or a machine that is too small."""

from __future__ import annotations

from collections.abc import Sequence


class Explained(Exception):
    """An error that one sentence describes.

    Args:
        message: sentence that says what is wrong.
        where: file, line, field or address of the mistake; empty when the sentence names it.
        hint: remedy; empty when it is obvious.
    """

    def __init__(self, message: str, where: str = "", hint: str = "") -> None:
        super().__init__(message, where, hint)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        """Message, place and remedy in one line."""
        place = f" [{self.where}]" if self.where else ""
        remedy = f" ({self.hint})" if self.hint else ""
        return f"{self.message}{place}{remedy}"


class UserError(Explained, ValueError):
    """A mistake in a config, a data set, an image, a checkpoint or a word-vector file."""


class ResourceError(Explained, RuntimeError):
    """Too few CPUs, GPUs or bytes on this machine, or no device of the wanted kind; the message gives both figures."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)

    def __reduce__(self) -> tuple[type[ResourceError], tuple[str, str]]:
        return type(self), (self.message, self.hint)


def some(items: Sequence[object], count: int = 3) -> str:
    """The first items of a list for a message, and the number of the others."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(str(item) for item in items[:count]) + more
