"""YAML files and `--set` overrides → one frozen config, with the origin of every value and every error at once.

A file may say `extends: [benchmark/cub, experiment/base]`: later ones win over earlier ones, its own keys over all,
mapping by mapping. Where a mapping's `kind` changes, what the new kind does not know is dropped.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mgmrn.config import BenchmarkConfig, ExperimentConfig, Frozen
from mgmrn.errors import UserError
from mgmrn.weights import find_weights

CONFIGS = Path(__file__).parent / "configs"
COMMAND_LINE = "--set"
DEFAULT = "default"


@dataclass(frozen=True)
class ComposedConfig:
    """A resolved config and where each of its values was written."""

    name: str
    config: ExperimentConfig
    provenance: Mapping[str, str]
    """Dotted path of every value → `file:line`, `--set` or `default`."""


@dataclass(frozen=True)
class Change:
    """One value in which two configs differ; an absent one is None."""

    path: str
    before: object
    after: object


@dataclass(frozen=True)
class _Leaf:
    value: Any
    source: str


@dataclass(frozen=True)
class _Section:
    children: dict[str, _Leaf | _Section]
    source: str


_Tree = _Leaf | _Section


def load_experiment(name_or_path: str, overrides: Sequence[str] = ()) -> ComposedConfig:
    """Reads an experiment, applies overrides and validates it.

    Args:
        name_or_path: name of a shipped experiment (`cub`), or path of a `.yaml` file.
        overrides: `dotted.path=value` with the value in YAML; later ones win.

    Raises:
        UserError: unknown experiment (with the nearest name and the list), unreadable YAML, or any number of wrong
            values, one line each.
    """
    path = _find("experiment", name_or_path)
    problems: list[UserError] = []
    tree = _read_with_parents(path, ())
    for override in overrides:
        try:
            tree = _merge(tree, _parse_override(override))
        except UserError as error:
            problems.append(error)
    tree = _with_default_kinds(tree)
    config, found = _validate(tree)
    problems += found
    if config is None or problems:
        raise _all_at_once(problems, path)
    return ComposedConfig(path.stem, config, _provenance(config, tree))


def load_benchmark_config(name_or_path: str) -> BenchmarkConfig:
    """Reads the `benchmark` of a shipped benchmark file (`cub`) or of any config file.

    Raises:
        UserError: as `load_experiment`.
    """
    path = _find("benchmark", name_or_path)
    config, problems = _validate(_with_default_kinds(_read_with_parents(path, ())))
    if config is None:
        raise _all_at_once(problems, path)
    return config.benchmark


def resolve_weights(config: ExperimentConfig, data_root: Path) -> ExperimentConfig:
    """The config with a relative weights path made absolute: below the data root, else below the working folder.

    Raises:
        UserError: when the file is in neither place.
    """
    backbone = config.model.backbone
    found = backbone.model_copy(update={"weights": find_weights(backbone.weights, data_root)})
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": found})})


def experiment_names() -> list[str]:
    """Names of the shipped experiments."""
    return _names("experiment")


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def _all_at_once(problems: Sequence[UserError], path: Path) -> UserError:
    if len(problems) == 1:
        return problems[0]
    lines = "".join(f"\n  {problem}" for problem in problems)
    return UserError(f"{len(problems)} errors in {_label(path)}:{lines}", _label(path))


def nearest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate that was probably meant, or none that is near."""
    found = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return found[0] if found else None


def values_of(config: BaseModel) -> dict[str, Any]:
    """Dotted path → value of everything in a config; lists are values, an empty mapping too."""
    return dict(_flatten(config.model_dump(mode="json"), ""))


def diff(before: ExperimentConfig, after: ExperimentConfig) -> list[Change]:
    """The values in which two configs differ, by path."""
    old, new = values_of(before), values_of(after)
    return [Change(path, old.get(path), new.get(path)) for path in sorted(old | new) if old.get(path) != new.get(path)]


def show(composed: ComposedConfig) -> str:
    """The full config as YAML, every line with its value's origin; reading it gives the same config again."""
    lines = list(_yaml_lines(composed.config.model_dump(mode="json"), "", composed.provenance))
    width = min(60, max(len(line) for line, _ in lines))
    return "".join(f"{line:{width}}  # {source}\n" if source else f"{line}\n" for line, source in lines)


def yaml_value(value: object) -> str:
    """One value in YAML's one-line form."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, with `5e-4` as a float and without anchors."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed, use extends", problem_mark=mark)
        return super().compose_node(parent, index)


# YAML 1.1, which PyYAML reads, takes a number without a dot but with an exponent for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _find(group: str, name_or_path: str) -> Path:
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(f"the {group} file {path} does not exist")
        return path
    names = _names(group)
    if name_or_path in names:
        return CONFIGS / group / f"{name_or_path}.yaml"
    close = nearest(name_or_path, names)
    meant = f"did you mean {close}? " if close else ""
    raise UserError(f"there is no {group} '{name_or_path}'", hint=f"{meant}{group}s: {', '.join(names)}")


def _label(path: Path) -> str:
    """A shipped file by its place among the configs, any other as it was given."""
    return str(path.relative_to(CONFIGS)) if path.is_relative_to(CONFIGS) else str(path)


def _read_with_parents(path: Path, below: tuple[Path, ...]) -> _Section:
    if path in below:
        chain = " → ".join(_label(one) for one in (*below, path))
        raise UserError(f"extends runs in a circle: {chain}", _label(path))
    own = _read(path)
    extends = own.children.pop("extends", None)
    merged: _Section = _Section({}, own.source)
    for parent in _parents(extends):
        parent_path = _parent_path(parent, path)
        if not parent_path.is_file():
            known = sorted(_label(file).removesuffix(".yaml") for file in CONFIGS.rglob("*.yaml"))
            close = nearest(parent, known)
            where = extends.source if extends else _label(path)
            hint = f"did you mean {close}?" if close else ""
            raise UserError(f"extends names '{parent}', which does not exist", where, hint)
        merged = _merge(merged, _read_with_parents(parent_path, (*below, path)))
    return _merge(merged, own)


def _parents(extends: _Tree | None) -> list[str]:
    if extends is None:
        return []
    names = extends.value if isinstance(extends, _Leaf) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError("extends must be a name or a list of names", extends.source, "for example [benchmark/cub]")
    return names


def _parent_path(parent: str, child: Path) -> Path:
    """`./x.yaml` is relative to the file that says it, anything else to the shipped configs."""
    return child.parent / parent if parent.startswith(".") else CONFIGS / f"{parent}.yaml"


def _read(path: Path) -> _Section:
    label = _label(path)
    try:
        tree = _parse(path.read_text(encoding="utf-8"), label)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the config cannot be read: {error}", label) from error
    if isinstance(tree, _Leaf) and tree.value is None:
        return _Section({}, label)
    if isinstance(tree, _Leaf):
        raise UserError("a config must be a mapping of fields to values", tree.source)
    return tree


def _parse(text: str, label: str, line_numbers: bool = True) -> _Tree:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return _Leaf(None, label) if node is None else _convert(loader, node, label, line_numbers)
    except yaml.MarkedYAMLError as error:
        where = f"{label}:{error.problem_mark.line + 1}" if error.problem_mark and line_numbers else label
        raise UserError(f"not valid YAML: {error.problem}", where) from error
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"not valid YAML: {error}", label) from error
    except RecursionError as error:
        raise UserError("not valid as a config: nested too deeply", label) from error
    finally:
        loader.dispose()


def _convert(loader: _Loader, node: yaml.Node, label: str, line_numbers: bool) -> _Tree:
    source = f"{label}:{node.start_mark.line + 1}" if line_numbers else label
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python/"):
        raise UserError(f"the tag {node.tag} is not allowed: a config holds plain values only", source)
    if isinstance(node, yaml.MappingNode):
        children: dict[str, _Tree] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            place = f"{label}:{key_node.start_mark.line + 1}" if line_numbers else label
            if not isinstance(key, str):
                raise UserError("a field's name must be text", place)
            if key in children:
                raise UserError(f"the field {key} is given twice", place)
            children[key] = _convert(loader, value_node, label, line_numbers)
        return _Section(children, source)
    value = loader.construct_object(node, deep=True)
    if not _is_plain(value):
        raise UserError(f"{value!r} is neither a number, text, true, false, null nor a list of them", source)
    return _Leaf(value, source)


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _parse_override(override: str) -> _Section:
    path, equals, text = override.partition("=")
    names = path.strip().split(".")
    if not equals or not all(names):
        raise UserError(f"'{override}' is not an override", COMMAND_LINE, "write --set section.field=value")
    tree = _parse(text, COMMAND_LINE, line_numbers=False)
    for name in reversed(names):
        tree = _Section({name: tree}, COMMAND_LINE)
    assert isinstance(tree, _Section)
    return tree


def _sections(model: type[Frozen]) -> Iterator[type[Frozen]]:
    """The kinds of config that a config may hold, at any depth, itself included."""
    yield model
    for field in model.model_fields.values():
        for kind in _models_in(field.annotation):
            yield from _sections(kind)


def _models_in(annotation: Any) -> Iterator[type[Frozen]]:
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


_KINDS = {
    model.model_fields["kind"].default: model for model in _sections(ExperimentConfig) if "kind" in model.model_fields
}


def _merge(base: _Section, over: _Section) -> _Section:
    children = dict(base.children)
    new, old = over.children.get("kind"), children.get("kind")
    if isinstance(new, _Leaf) and isinstance(old, _Leaf) and new.value != old.value and new.value in _KINDS:
        children = {name: child for name, child in children.items() if name in _KINDS[new.value].model_fields}
    for name, child in over.children.items():
        below = children.get(name)
        if isinstance(child, _Section) and isinstance(below, _Section):
            child = _merge(below, child)
        children[name] = child
    return _Section(children, over.source)


def _with_default_kinds(tree: _Section) -> _Section:
    """Adds the `kind` that a mapping leaves to the default, which pydantic wants to see."""
    children = dict(tree.children)
    for name, field in ExperimentConfig.model_fields.items():
        kind, section = getattr(field.default, "kind", None), children.get(name)
        if kind and isinstance(section, _Section) and "kind" not in section.children:
            children[name] = _Section({"kind": _Leaf(kind, DEFAULT), **section.children}, section.source)
    return _Section(children, tree.source)


def _plain(tree: _Tree) -> Any:
    if isinstance(tree, _Leaf):
        return tree.value
    return {name: _plain(child) for name, child in tree.children.items()}


def _validate(tree: _Section) -> tuple[ExperimentConfig | None, list[UserError]]:
    # In JSON, strict validation takes a list for a tuple but no text for a number.
    try:
        return ExperimentConfig.model_validate_json(json.dumps(_plain(tree)), strict=True), []
    except ValidationError as error:
        found = error.errors(include_url=False)
        places = [details["loc"] for details in found]
        # A list with a wrong item is also reported as too short.
        repeated = [any(place and place[:-1] == own for place in places) for own in places]
        return None, [_problem(details, tree) for details, again in zip(found, repeated, strict=True) if not again]


def _problem(details: ErrorDetails, tree: _Section) -> UserError:
    """Field, place, what is wrong, and the nearest name where a field is unknown."""
    names, node = _locate(details["loc"], tree)
    path = ".".join(names) or "config"
    if details["type"] == "extra_forbidden":
        close = _nearest_field(path, tree)
        return UserError(f"unknown field {path}", node.source, f"did you mean {close}?" if close else "")
    if details["type"] == "missing":
        return UserError(f"{path} is missing", node.source)
    if details["type"] == "union_tag_invalid":
        context = details["ctx"]
        message = f"{path}.kind must be one of {context['expected_tags']}, got '{context['tag']}'"
        return UserError(message, _source(["kind"], node))
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if details["type"] == "value_error":
        return UserError(f"{path}: {message}", node.source)
    given = yaml_value(details["input"]) if _is_plain(details["input"]) else "a mapping"
    return UserError(f"{path} {message[0].lower()}{message[1:]}, got {given}", node.source)


def _nearest_field(path: str, tree: _Section) -> str | None:
    """A field of the same section if one is at all alike, else the nearest of all."""
    known = _known_paths(tree)
    section, _, name = path.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    alike = difflib.get_close_matches(name, siblings, n=1, cutoff=0.4)
    return siblings[alike[0]] if alike else nearest(path, known)


def _locate(location: Sequence[str | int], tree: _Section) -> tuple[list[str], _Tree]:
    """The field that pydantic means: it also names the kind of a union, and what is not there."""
    names: list[str] = []
    node: _Tree = tree
    for position, part in enumerate(location):
        child = node.children.get(str(part)) if isinstance(node, _Section) else None
        if (child is None and part in _KINDS and position < len(location) - 1) or part == "[key]":
            continue
        names.append(str(part))
        node = child or node
    return names, node


def _known_paths(tree: _Section) -> list[str]:
    """Every field and section that could have been meant, given the kinds that were chosen."""
    known = list(_field_paths(ExperimentConfig, "", tree))
    return known + [path.rpartition(".")[0] for path in known if "." in path]


def _field_paths(model: type[Frozen], prefix: str, tree: _Tree | None) -> Iterator[str]:
    for name, field in model.model_fields.items():
        child = tree.children.get(name) if isinstance(tree, _Section) else None
        options = list(_models_in(field.annotation))
        if len(options) > 1:
            kind = child.children.get("kind") if isinstance(child, _Section) else None
            chosen = kind.value if isinstance(kind, _Leaf) else getattr(field.default, "kind", None)
            options = [option for option in options if option.model_fields["kind"].default == chosen] or options
        yield f"{prefix}{name}"
        for option in options:
            yield from _field_paths(option, f"{prefix}{name}.", child)


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or (path and not value):
        yield path, value
        return
    for name, child in value.items():
        yield from _flatten(child, f"{path}.{name}" if path else name)


def _provenance(config: ExperimentConfig, tree: _Section) -> dict[str, str]:
    return {path: _source(path.split("."), tree) for path in values_of(config)}


def _source(names: Sequence[str], tree: _Tree) -> str:
    for name in names:
        if not isinstance(tree, _Section) or name not in tree.children:
            return DEFAULT
        tree = tree.children[name]
    return tree.source


def _yaml_lines(value: Mapping[str, Any], prefix: str, provenance: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    indent = "  " * prefix.count(".")
    for name, child in value.items():
        path = f"{prefix}{name}"
        if isinstance(child, dict) and child:
            yield f"{indent}{name}:", ""
            yield from _yaml_lines(child, f"{path}.", provenance)
        else:
            yield f"{indent}{name}: {yaml_value(child)}", provenance.get(path, DEFAULT)
