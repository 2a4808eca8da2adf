"""MkDocs' hook: adds the pages that are made from the code, and the list of decisions. Named in `mkdocs.yml`."""

from __future__ import annotations

from pathlib import Path

from cli_reference import cli_page
from config_reference import config_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from shipped_reference import shipped_page

PAGES = {
    "reference/cli.md": cli_page,
    "reference/config.md": config_page,
    "reference/shipped.md": shipped_page,
}
DECISIONS = "Decisions"
"""Section of the navigation that lists the files of `docs/adr`."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the decisions in their order."""
    folder = Path(config.docs_dir)
    decisions = [str(file.relative_to(folder)) for file in sorted((folder / "adr").glob("*.md"))]
    config.nav = [{DECISIONS: decisions} if DECISIONS in entry else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for place, write in PAGES.items():
        files.append(File.generated(config, place, content=write()))
    return files
