"""A tree of values → one frozen config, or every mistake in it: field, place, what is wrong, and the nearest name."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from mgmrn.config import ExperimentConfig, Frozen
from mgmrn.errors import UserError
from pipeline.config.yaml_tree import DEFAULT, Leaf, Section, Tree, is_plain, plain, source_of, yaml_value

Model = TypeVar("Model", bound=Frozen)


def validate(tree: Section, model: type[Model]) -> tuple[Model | None, list[UserError]]:
    """The config that a tree describes, or None and all that is wrong with it."""
    tree = _with_default_kinds(tree, model)
    # In JSON, strict validation takes a list for a tuple but no text for a number.
    try:
        return model.model_validate_json(json.dumps(plain(tree)), strict=True), []
    except ValidationError as error:
        found = error.errors(include_url=False)
        places = [details["loc"] for details in found]
        # A list with a wrong item is also reported as too short.
        repeated = [any(place and place[:-1] == own for place in places) for own in places]
        return None, [
            _problem(details, tree, model) for details, again in zip(found, repeated, strict=True) if not again
        ]


def all_at_once(problems: Sequence[UserError], label: str) -> UserError:
    """One error that holds all the problems of a file."""
    if len(problems) == 1:
        return problems[0]
    lines = "".join(f"\n  {problem}" for problem in problems)
    return UserError(f"{len(problems)} errors in {label}:{lines}")


def all_different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of a field that lists what must not be there twice.

    Raises:
        ValueError: when something is.
    """
    if len(set(values)) < len(values):
        raise ValueError(f"one is given twice, got {list(values)}")
    return values


def nearest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate that was probably meant, or none that is near."""
    found = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    return found[0] if found else None


def _with_default_kinds(tree: Section, model: type[Frozen]) -> Section:
    """Adds the `kind` that a mapping leaves to the default, which pydantic wants to see."""
    children = dict(tree.children)
    for name, field in model.model_fields.items():
        kind, section = getattr(field.default, "kind", None), children.get(name)
        if kind and isinstance(section, Section) and "kind" not in section.children:
            children[name] = Section({"kind": Leaf(kind, DEFAULT), **section.children}, section.source)
    return Section(children, tree.source)


def _problem(details: ErrorDetails, tree: Section, model: type[Frozen]) -> UserError:
    """Field, place, what is wrong, and the nearest name where a field is unknown."""
    names, node = _locate(details["loc"], tree)
    path = ".".join(names) or "config"
    if details["type"] == "extra_forbidden":
        close = _nearest_field(path, tree, model)
        return UserError(f"unknown field {path}", node.source, f"did you mean {close}?" if close else "")
    if details["type"] == "union_tag_not_found":
        return UserError(f"{path}.kind is missing", node.source)
    if details["type"] == "missing":
        return UserError(f"{path} is missing", node.source)
    if details["type"] == "union_tag_invalid":
        context = details["ctx"]
        message = f"{path}.kind must be one of {context['expected_tags']}, got '{context['tag']}'"
        return UserError(message, source_of(["kind"], node))
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if details["type"] == "value_error":
        return UserError(f"{path}: {message}", node.source)
    given = yaml_value(details["input"]) if is_plain(details["input"]) else "a mapping"
    return UserError(f"{path} {message[0].lower()}{message[1:]}, got {given}", node.source)


def _nearest_field(path: str, tree: Section, model: type[Frozen]) -> str | None:
    """A field of the same section if one is at all alike, else the nearest of all."""
    known = _known_paths(tree, model)
    section, _, name = path.rpartition(".")
    siblings = {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == section}
    alike = difflib.get_close_matches(name, siblings, n=1, cutoff=0.4)
    return siblings[alike[0]] if alike else nearest(path, known)


def _locate(location: Sequence[str | int], tree: Section) -> tuple[list[str], Tree]:
    """The field that pydantic means: it also names the kind of a union, and what is not there."""
    names: list[str] = []
    node: Tree = tree
    for part in location:
        child = node.children.get(str(part)) if isinstance(node, Section) else None
        tag = child is None and (part in KINDS or part == _kind(node))
        if tag or part == "[key]":
            continue
        names.append(str(part))
        node = child or node
    return names, node


def _kind(node: Tree | None) -> object:
    """What a mapping says that it is."""
    kind = node.children.get("kind") if isinstance(node, Section) else None
    return kind.value if isinstance(kind, Leaf) else None


def _known_paths(tree: Section, model: type[Frozen]) -> list[str]:
    """Every field and section that could have been meant, given the kinds that were chosen."""
    known = list(_field_paths(model, "", tree))
    return known + [path.rpartition(".")[0] for path in known if "." in path]


def _field_paths(model: type[Frozen], prefix: str, tree: Tree | None) -> Iterator[str]:
    for name, field in model.model_fields.items():
        child = tree.children.get(name) if isinstance(tree, Section) else None
        yield f"{prefix}{name}"
        if get_origin(field.annotation) is not dict:
            yield from _paths_in(field, f"{prefix}{name}.", child)
        elif isinstance(child, Section):
            for key, entry in child.children.items():
                yield from _paths_in(field, f"{prefix}{name}.{key}.", entry)


def _paths_in(field: FieldInfo, prefix: str, tree: Tree | None) -> Iterator[str]:
    """The fields of a section: of the kind that was chosen, where there are several."""
    options = list(_models_in(field.annotation))
    if len(options) > 1:
        chosen = _kind(tree) or getattr(field.default, "kind", None)
        options = [option for option in options if option.model_fields["kind"].default == chosen] or options
    for option in options:
        yield from _field_paths(option, prefix, tree)


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


KINDS: dict[str, type[Frozen]] = {
    model.model_fields["kind"].default: model for model in _sections(ExperimentConfig) if "kind" in model.model_fields
}
"""What a `kind` says that its mapping is."""
