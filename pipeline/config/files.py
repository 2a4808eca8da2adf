"""Config files: where the shipped ones are, and a file with everything that it extends.

A file may say `extends: [benchmark/cub, experiment/base]`: later ones win over earlier ones, its own keys over all,
mapping by mapping. Where a mapping's `kind` changes, what the new kind does not know is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mgmrn.errors import UserError
from pipeline.config.validation import KINDS, nearest
from pipeline.config.yaml_tree import Leaf, Section, Tree, parse_yaml

CONFIGS = Path(__file__).parent / "configs"


def find_config(group: str, name_or_path: str) -> Path:
    """The shipped file of that name in a group (`experiment`, `benchmark`, `search`), or the file itself.

    Raises:
        UserError: when there is none, with the nearest name and the list.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(f"the {group} file {path} does not exist")
        return path
    names = config_names(group)
    if name_or_path in names:
        return CONFIGS / group / f"{name_or_path}.yaml"
    close = nearest(name_or_path, names)
    meant = f"did you mean {close}? " if close else ""
    raise UserError(f"there is no {group} '{name_or_path}'", hint=f"{meant}there are {', '.join(names)}")


def config_names(group: str) -> list[str]:
    """Names of the shipped files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def unknown_files(base: str, benchmarks: Sequence[str], place: Callable[[str], str]) -> Iterator[UserError]:
    """Which of the files that a search or an ablation names are not there.

    Args:
        base: an experiment.
        benchmarks: of each run.
        place: field (`base`, `benchmarks`) → where it was written.
    """
    for field, group, name in [("base", "experiment", base), *(("benchmarks", "benchmark", one) for one in benchmarks)]:
        try:
            find_config(group, name)
        except UserError as error:
            yield UserError(error.message, place(field), error.hint)


def label_of(path: Path) -> str:
    """A shipped file by its place among the configs, any other as it was given."""
    return str(path.relative_to(CONFIGS)) if path.is_relative_to(CONFIGS) else str(path)


def read_config(path: Path, below: tuple[Path, ...] = ()) -> Section:
    """A file merged over all that it extends.

    Raises:
        UserError: for a file that cannot be read, is no mapping, or extends what does not exist.
    """
    if path in below:
        chain = " → ".join(label_of(one) for one in (*below, path))
        raise UserError(f"extends runs in a circle: {chain}", label_of(path))
    own = _read(path)
    extends = own.children.pop("extends", None)
    merged: Section = Section({}, own.source)
    for parent in _parents(extends):
        parent_path = _parent_path(parent, path)
        if not parent_path.is_file():
            known = sorted(label_of(file).removesuffix(".yaml") for file in CONFIGS.rglob("*.yaml"))
            close = nearest(parent, known)
            where = extends.source if extends else label_of(path)
            hint = f"did you mean {close}?" if close else ""
            raise UserError(f"extends names '{parent}', which does not exist", where, hint)
        merged = merge(merged, read_config(parent_path, (*below, path)))
    return merge(merged, own)


def _parents(extends: Tree | None) -> list[str]:
    if extends is None:
        return []
    names = extends.value if isinstance(extends, Leaf) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("extends must be a name or a list of names", extends.source, "for example [benchmark/cub]")
    return names


def _parent_path(parent: str, child: Path) -> Path:
    """`./x.yaml` is relative to the file that says it, anything else to the shipped configs."""
    return child.parent / parent if parent.startswith(".") else CONFIGS / f"{parent}.yaml"


def _read(path: Path) -> Section:
    label = label_of(path)
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"), label)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the config cannot be read: {error}", label) from error
    if isinstance(tree, Leaf) and tree.value is None:
        return Section({}, label)
    if isinstance(tree, Leaf):
        raise UserError("a config must be a mapping of fields to values", tree.source)
    return tree


def merge(base: Section, over: Section) -> Section:
    """The values of `over` on top of those of `base`, mapping by mapping."""
    children = dict(base.children)
    new, old = over.children.get("kind"), children.get("kind")
    if isinstance(new, Leaf) and isinstance(old, Leaf) and new.value != old.value and new.value in KINDS:
        children = {name: child for name, child in children.items() if name in KINDS[new.value].model_fields}
    for name, child in over.children.items():
        below = children.get(name)
        if isinstance(child, Section) and isinstance(below, Section):
            child = merge(below, child)
        children[name] = child
    return Section(children, over.source)
