"""Config files: the shipped ones, and a file merged over all that it extends.

A file may say `extends: [benchmark/cub, experiment/base]`: later files win over earlier ones, its own keys over all,
mapping by mapping. Where the `kind` of a mapping changes, fields that the new kind does not have are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mgmrn.errors import UserError
from pipeline.config.validation import KINDS, did_you_mean
from pipeline.config.yaml_tree import Leaf, Section, Tree, parse_yaml

CONFIGS = Path(__file__).parent / "configs"


def find_config(group: str, name_or_path: str) -> Path:
    """Path of a shipped config of a group (`experiment`, `benchmark`, `search`, `ablation`), or of a YAML file."""
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(f"the {group} file {path} does not exist")
        return path
    names = config_names(group)
    if name_or_path in names:
        return CONFIGS / group / f"{name_or_path}.yaml"
    hint = f"{did_you_mean(name_or_path, names)} there are {', '.join(names)}".lstrip()
    raise UserError(f"there is no {group} '{name_or_path}'", hint=hint)


def config_names(group: str) -> list[str]:
    """Names of the shipped files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def unknown_files(base: str, benchmarks: Sequence[str], place: Callable[[str], str]) -> Iterator[UserError]:
    """Errors for the configs that a search or an ablation names and that do not exist; `place` gives the origin of a field."""
    for field, group, name in [("base", "experiment", base), *(("benchmarks", "benchmark", one) for one in benchmarks)]:
        try:
            find_config(group, name)
        except UserError as error:
            yield UserError(error.message, place(field), error.hint)


def label_of(path: Path) -> str:
    """Path of a shipped file relative to the folder of configs; any other path as it was given."""
    return str(path.relative_to(CONFIGS)) if path.is_relative_to(CONFIGS) else str(path)


def read_config(path: Path, below: tuple[Path, ...] = ()) -> Section:
    """A file merged over all that it extends; `below` are the files whose `extends` led to it."""
    label = label_of(path)
    if path in below:
        raise UserError(f"extends runs in a circle: {' → '.join(map(label_of, (*below, path)))}", label)
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), label)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the config cannot be read: {error}", label) from error
    if isinstance(tree, Leaf):
        if tree.value is not None:
            raise UserError("a config must be a mapping of fields to values", tree.source)
        tree = Section({}, label)
    merged = Section({}, tree.source)
    if (extends := tree.children.get("extends")) is not None:
        for parent in _parents(extends, path):
            merged = merge(merged, read_config(parent, (*below, path)))
    own = {name: child for name, child in tree.children.items() if name != "extends"}
    return merge(merged, Section(own, tree.source))


def _parents(extends: Tree, child: Path) -> Iterator[Path]:
    """Files that `extends` names: `./x.yaml` is relative to the child's folder, any other name to the shipped configs."""
    names = extends.value if isinstance(extends, Leaf) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("extends must be a name or a list of names", extends.source, "for example [benchmark/cub]")
    for name in names:
        path = child.parent / name if name.startswith(".") else CONFIGS / f"{name}.yaml"
        if not path.is_file():
            known = sorted(label_of(file).removesuffix(".yaml") for file in CONFIGS.rglob("*.yaml"))
            message = f"extends names '{name}', which does not exist"
            raise UserError(message, extends.source, did_you_mean(name, known))
        yield path


def merge(base: Section, over: Section) -> Section:
    """Values of `over` on top of those of `base`, mapping by mapping."""
    children = dict(base.children)
    new, old = over.children.get("kind"), children.get("kind")
    if isinstance(new, Leaf) and isinstance(old, Leaf) and new.value != old.value and new.value in KINDS:
        children = {name: child for name, child in children.items() if name in KINDS[new.value].model_fields}
    for name, child in over.children.items():
        below = children.get(name)
        children[name] = merge(below, child) if isinstance(below, Section) and isinstance(child, Section) else child
    return Section(children, over.source)
