"""Config files: the shipped ones, and a file merged over all that it extends, like `extends: [benchmark/cub, experiment/base]`.

Later files win over earlier ones, mapping by mapping. Where the `kind` of a mapping changes, fields that it lacks are dropped.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mgmrn.errors import UserError
from mgmrn.reading import read_text
from pipeline.config.validation import KINDS, did_you_mean
from pipeline.config.yaml_tree import Leaf, Section, Tree, parse_yaml

CONFIGS = Path(__file__).parent / "configs"
LARGEST_BYTES = 2**18
DEEPEST_EXTENDS = 20


def find_config(group: str, name_or_path: str) -> Path:
    """Path of a shipped config of a group (`experiment`, `benchmark`, `search`, `ablation`), or of a YAML file."""
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not os.path.isfile(path):
            raise UserError(f"the {group} file {path} {'is not a file' if os.path.exists(path) else 'does not exist'}")
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


def config_text(path: Path) -> str:
    """Text of a config file. Raises UserError where it cannot be read."""
    if (size := path.stat().st_size) > LARGEST_BYTES:
        raise UserError(f"the config has {size} bytes, {LARGEST_BYTES} are the most", label_of(path))
    return read_text(path, "config", "check the path")


def read_config(path: Path) -> Section:
    """A file merged over all that it extends."""
    return _read_config(path, (), {})


def _read_config(path: Path, below: tuple[Path, ...], known: dict[Path, Section]) -> Section:
    """`below` are the files whose `extends` led to this one; `known` holds files that were read, by their real path."""
    label, real = label_of(path), path.resolve()
    if real in known:
        return known[real]
    if real in [one.resolve() for one in below]:
        raise UserError(f"extends runs in a circle: {' → '.join(map(label_of, (*below, path)))}", label)
    if len(below) > DEEPEST_EXTENDS:
        raise UserError(f"more than {DEEPEST_EXTENDS} files extend each other in a row", label)
    tree = parse_yaml(config_text(path), label)
    if isinstance(tree, Leaf):
        if tree.value is not None:
            raise UserError("a config must be a mapping of fields to values", tree.source)
        tree = Section({}, label)
    merged = Section({}, tree.source)
    if (extends := tree.children.get("extends")) is not None:
        for parent in _parents(extends, path):
            merged = merge(merged, _read_config(parent, (*below, path), known))
    own = {name: child for name, child in tree.children.items() if name != "extends"}
    known[real] = merge(merged, Section(own, tree.source))
    return known[real]


def _parents(extends: Tree, child: Path) -> Iterator[Path]:
    """Files that `extends` names: `./x.yaml` is relative to the child's folder, any other name to the shipped configs."""
    names = extends.value if isinstance(extends, Leaf) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("extends must be a name or a list of names", extends.source, "for example [benchmark/cub]")
    for name in names:
        path = child.parent / name if name.startswith(".") else CONFIGS / f"{name}.yaml"
        if not os.path.isfile(path):
            known = sorted(label_of(file).removesuffix(".yaml") for file in CONFIGS.rglob("*.yaml"))
            message = f"extends names '{name}', which does not exist"
            raise UserError(message, extends.source, did_you_mean(name, known))
        yield path


def merge(base: Section, over: Section) -> Section:
    """Values of `over` on top of those of `base`, mapping by mapping."""
    children = dict(base.children)
    new, old = over.children.get("kind"), children.get("kind")
    kind = new.value if isinstance(new, Leaf) else None
    if isinstance(kind, str) and kind in KINDS and isinstance(old, Leaf) and old.value != kind:
        children = {name: child for name, child in children.items() if name in KINDS[kind].model_fields}
    for name, child in over.children.items():
        below = children.get(name)
        children[name] = merge(below, child) if isinstance(below, Section) and isinstance(child, Section) else child
    return Section(children, over.source)
