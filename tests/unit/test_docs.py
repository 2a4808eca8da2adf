"""The docs build without a warning or a network, hold every verb and field, and name existing commands, files, configs and tests."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.ablation.config import AblationConfig, load_ablation
from pipeline.cli.app import command, main
from pipeline.config.compose import load_experiment, values_of
from pipeline.config.files import config_names
from pipeline.search.config import SearchConfig, load_search
from tests.commands import check, commands_in, verbs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = ("reference/cli.html", "reference/config.html", "reference/shipped.html")
SETTINGS = {"search": load_search, "ablation": load_ablation, "experiment": load_experiment}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as CI builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_navigation_and_loads_no_file_from_the_internet(site: Path) -> None:
    pages = {page.relative_to(site): page.read_text() for page in site.rglob("*.html")}
    written = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in PAGES[1:]}
    assert pages.keys() - {Path("404.html")} == written | {Path(page) for page in GENERATED}
    tags = re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*>", "".join(pages.values()))
    found = [re.search(r'(?:src|href)="?([^" >]*)', tag) for tag in tags if not re.search(r'rel="?(?:prev|next)', tag)]
    assets = [one[1] for one in found if one]
    assets += [url for sheet in site.rglob("*.css") for url in re.findall(r"url\(\"?([^)\"]*)", sheet.read_text())]
    assert len(assets) > 20
    assert [one for one in assets if one.startswith(("http:", "https:", "//"))] == []


def test_generated_pages_hold_every_verb_field_and_config(site: Path) -> None:
    cli, config, shipped = ((site / page).read_text() for page in GENERATED)
    assert [verb for verb, _ in verbs(command) if f'id="{verb.replace(" ", "-")}"' not in cli] == []
    assert [field for field in fields() if f"<code>{field}</code>" not in config] == []
    names = [f"{group}/{name}" for group in ("benchmark", "backbone", *SETTINGS) for name in config_names(group)]
    assert [name for name in names if f">{name}<" not in shipped] == []


def fields() -> set[str]:
    """Every field of every kind of experiment, and those at the top of searches and ablations."""
    found: set[str] = {*SearchConfig.model_fields, *AblationConfig.model_fields}
    for name in config_names("experiment"):
        found |= values_of(load_experiment(name).config).keys()
    return found - {field for field in found if field.startswith("loss.level_weights.")}


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that pages tell the reader to save."""
    folder = tmp_path_factory.mktemp("reader")
    for page in PAGES:
        for name, text in re.findall(r"```yaml\n# ([\w-]+\.yaml)\n(.*?)```", page.read_text(), re.DOTALL):
            (folder / name).write_text(text)
    (folder / "shapes-root").mkdir()
    (folder / "shapes-root" / "SHAPES.yaml").write_text("benchmark:\n  name: SHAPES\n")  # made by `data import`
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_pipeline_accepts_every_command(page: Path, readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(readers_folder)
    for typed in commands_in(page.read_text()):
        check(typed)


def test_pages_have_commands_and_configs_that_are_right(readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(len(list(commands_in(page.read_text()))) for page in PAGES) > 80
    monkeypatch.chdir(readers_folder)
    files = sorted(readers_folder.glob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        text = file.read_text()
        search, ablation = "\nspace:|extends: search/", "\nvariants:|extends: ablation/"
        kind = "search" if re.search(search, text) else "ablation" if re.search(ablation, text) else "experiment"
        SETTINGS[kind](str(file))


def test_files_that_the_pages_name_exist() -> None:
    for page in (*(page for page in PAGES if page.parent.name != "adr"), ROOT / "cluster" / "README.md"):
        named = re.findall(r"`((?:cluster|pipeline|mgmrn|tests|docs)/[\w/.-]*\w)(?:::\w+)?`", page.read_text())
        named += re.findall(r"\]\(((?!https?:)[a-z][\w/.]*)\)", page.read_text()) if page.name == "README.md" else []
        missing = [name for name in named if not (ROOT / name).exists() and not (page.parent / name).exists()]
        assert [name for name in missing if not name.endswith("secrets.env")] == [], page


def test_own_data_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps of the page except the training."""
    text = (ROOT / "docs" / "how-to" / "own-data.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "shapes.py").write_text(script)
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "shapes.py"], check=True)
    (typed,) = [one for one in commands_in(text) if one.startswith("data import")]
    assert main(typed.split()) == 0
    assert (tmp_path / "shapes-root" / "xlsa17" / "data" / "SHAPES" / "att_splits.mat").is_file()
    shutil.rmtree("shapes-root")
    Path("shapes", "red circle").rename("red circle")
    assert main(typed.split()) == 2
    assert not Path("shapes-root").exists()


TABLE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
HEADS = re.compile(r"\|[-|]+\|$|\| (Fault|What|Trap) ")
ROWS = [line for line in TABLE.splitlines() if line.startswith("|") and not HEADS.match(line)]
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip().replace("`", "")[:40])
def test_the_test_of_a_row_exists_and_measures_the_time_that_the_row_gives(row: str) -> None:
    named = NAMED.findall(row.split("|")[-2])
    assert named, "a row names its test"
    texts = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named}
    for file, function in named:
        functions = {node.name for node in ast.walk(ast.parse(texts[file])) if isinstance(node, ast.FunctionDef)}
        assert not function or function in functions, f"{file} has no {function}"
    assert not re.search(r"\| [\d.]+ s", row) or any("time_recover" in text for text in texts.values())
