"""What the command line itself finds wrong with its words, in a sentence like every other error, with the page of help to read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mgmrn.errors import UserError


def _of(choices: str | None) -> str:
    return f": one of {', '.join(choices.replace(',', ' ').split())}" if choices else ""


_WORDS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], tuple[str, str]]], ...] = (
    (
        re.compile(r"Missing argument '(.+?)'\.(?: Choose from:(.+))?", re.DOTALL),
        lambda found: (f"{found[1].upper()} is missing{_of(found[2])}", ""),
    ),
    (re.compile(r"Missing option '(.+?)'\."), lambda found: (f"{found[1]} is missing", "")),
    (re.compile(r"Option '(.+?)' requires an argument\."), lambda found: (f"{found[1]} needs a value", "")),
    (
        re.compile(r"No such command '(.+?)'\.(?: Did you mean (.+)\?)?"),
        lambda found: (f"there is no verb '{found[1]}'", (found[2] or "").replace("'", "")),
    ),
    (
        re.compile(r"No such option: (\S+)(?: \(Possible options: (.+)\))?"),
        lambda found: (f"there is no option {found[1]}", found[2] or ""),
    ),
    (
        re.compile(r"Invalid value for '(.+?)': Input should be ([^,]+)(?:, unable .*)?"),
        lambda found: (f"{found[1]} must be {found[2]}", ""),
    ),
    (
        re.compile(r"Invalid value for '(.+?)': (?:Value error, )?(.+?)\.?"),
        lambda found: (f"{found[1]}: {found[2]}", ""),
    ),
    (
        re.compile(r"Got unexpected extra argument\(s\) \((.+)\)"),
        lambda found: (f"nothing more was expected, got {found[1]}", ""),
    ),
)
"""A message of Typer → ours, and what was probably meant."""


def in_our_words(error: Any) -> UserError:
    """An error of Typer's parser as one of ours.

    Args:
        error: with `format_message()`, and the context of the verb in `ctx`.
    """
    text = error.format_message()
    matches = ((pattern.fullmatch(text), words) for pattern, words in _WORDS)
    message, meant = next((words(match) for match, words in matches if match), (text, ""))
    help_of = f"see {error.ctx.command_path} --help" if error.ctx else ""
    return UserError(message, hint=f"did you mean {meant}? {help_of}" if meant else help_of)


def is_a_call_for_help(error: Any) -> bool:
    """Whether a group was named without a verb, which is answered with the list of its verbs."""
    return bool(error.ctx) and error.format_message() == error.ctx.get_help()
