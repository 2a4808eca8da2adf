"""How pages are made from templates: everything is escaped, and a name that a template misspells is an error."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def page_template(folder: Path, filters: Iterable[Callable[..., object]]) -> Template:
    """The `template.html.j2` of a folder.

    Args:
        folder: where it stands, and what it includes.
        filters: functions that it may call, by their names.
    """
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({function.__name__: function for function in filters})
    return environment.get_template("template.html.j2")
