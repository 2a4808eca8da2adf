"""Templates of the pages of reports, explanations and studies: no page loads anything, and all text in it is escaped."""

from collections.abc import Callable, Iterable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

STYLE = Path(__file__).with_name("style.css")


def page_template(path: Path, filters: Iterable[Callable[..., object]] = ()) -> Template:
    """Template of a file, which may call the `filters` by their names; unknown names are errors."""
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({function.__name__: function for function in filters})
    return environment.get_template(path.name)
