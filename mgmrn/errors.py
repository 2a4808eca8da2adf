"""Exceptions that a command line answers with a sentence: the input is wrong, or this machine is too small for it."""


class Explained(Exception):
    """An error that a sentence answers.

    Args:
        message: one sentence that says what is wrong.
        where: file, line, field or address that is wrong; empty when the sentence says it.
        hint: how to mend it; empty when it is obvious.
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


class ResourceError(RuntimeError):
    """What was asked for cannot run here: too few CPUs, GPUs or bytes, or no device of the kind that was asked for.

    Args:
        message: one sentence that says what is missing, with both figures.
        hint: how to ask for less, or where there is more.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Message and remedy in one line."""
        return f"{self.message} ({self.hint})" if self.hint else self.message
