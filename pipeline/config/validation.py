"""From a tree of values to one frozen config, or all its errors: field, origin, what is wrong, and the nearest known name."""

import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from mgmrn.config import ExperimentConfig, Frozen
from mgmrn.errors import UserError
from pipeline.config.yaml_tree import DEFAULT, Leaf, Section, Tree, plain, source_of, yaml_value

Model = TypeVar("Model", bound=Frozen)


def validate(tree: Section, model: type[Model]) -> tuple[Model | None, list[UserError]]:
    """Config that a tree describes, or None and all errors."""
    tree = _with_default_kinds(tree, model)
    # In JSON, strict validation takes a list for a tuple but no text for a number.
    try:
        return model.model_validate_json(json.dumps(plain(tree)), strict=True), []
    except ValidationError as error:
        found = error.errors(include_url=False)
        # A list with a wrong item is also reported as too short.
        with_wrong_items = {details["loc"][:-1] for details in found if details["loc"]}
        return None, [_problem(details, tree, model) for details in found if details["loc"] not in with_wrong_items]


def all_at_once(problems: Sequence[UserError], label: str) -> UserError:
    """One error that holds all errors of a file."""
    if len(problems) == 1:
        return problems[0]
    lines = "".join(f"\n  {problem}" for problem in problems)
    return UserError(f"{len(problems)} errors in {label}:{lines}")


def all_different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Validator of a field whose values must differ."""
    if len(set(values)) < len(values):
        raise ValueError(f"one is given twice, got {list(values)}")
    return values


def did_you_mean(word: str, candidates: Sequence[str], *, cutoff: float = 0.6, prefix: str = "") -> str:
    """Question for the most similar candidate, with a prefix; empty when no candidate is similar."""
    found = difflib.get_close_matches(word, candidates, n=1, cutoff=cutoff)
    return f"did you mean {prefix}{found[0]}?" if found else ""


def _with_default_kinds(tree: Section, model: type[Frozen]) -> Section:
    """Add the default `kind` to the mappings without one, since pydantic requires it."""
    children = dict(tree.children)
    for name, field in model.model_fields.items():
        kind, section = getattr(field.default, "kind", None), children.get(name)
        if kind and isinstance(section, Section) and "kind" not in section.children:
            children[name] = Section({"kind": Leaf(kind, DEFAULT), **section.children}, section.source)
    return Section(children, tree.source)


def _problem(details: ErrorDetails, tree: Section, model: type[Frozen]) -> UserError:
    names, node, _ = _locate(details["loc"], tree, model)
    path = ".".join(names) or "config"
    if details["type"] == "extra_forbidden":
        section, _, siblings = _locate(details["loc"][:-1], tree, model)
        fields = [name for one in siblings for name in one.model_fields]
        close = did_you_mean(names[-1], fields, cutoff=0.4, prefix="".join(f"{name}." for name in section))
        hint = close or did_you_mean(path, [field for field, _ in _fields(model)])
        return UserError(f"unknown field {path}", node.source, hint)
    if details["type"] in ("missing", "union_tag_not_found"):
        kind = "" if details["type"] == "missing" else ".kind"
        return UserError(f"{path}{kind} is missing", node.source)
    if details["type"] == "union_tag_invalid":
        context = details["ctx"]
        message = f"{path}.kind must be one of {context['expected_tags']}, got '{context['tag']}'"
        return UserError(message, source_of(["kind"], node))
    message = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if details["type"] == "value_error":
        return UserError(f"{path}: {message}", node.source)
    given = "a mapping" if isinstance(details["input"], dict) else yaml_value(details["input"])
    given = given if len(given) <= 80 else f"{given[:80]}…"
    return UserError(f"{path} {message[0].lower()}{message[1:]}, got {given}", node.source)


def _locate(
    location: Sequence[str | int], tree: Section, model: type[Frozen]
) -> tuple[list[str], Tree, list[type[Frozen]]]:
    """Names of the field at a location of pydantic's, which also holds kinds; the nearest node of the tree, and the models there."""
    names: list[str] = []
    node: Tree = tree
    models: list[type[Frozen]] = [model]
    for part in location:
        child = node.children.get(str(part)) if isinstance(node, Section) else None
        of_kind = [one for one in models if "kind" in one.model_fields and one.model_fields["kind"].default == part]
        if of_kind and child is None:
            models = of_kind
        elif part != "[key]":
            names.append(str(part))
            node = child or node
            fields = [one.model_fields[str(part)] for one in models if part in one.model_fields]
            # The key of a mapping of models is no field.
            models = [inner for field in fields for inner in _models_in(field.annotation)] if fields else models
    return names, node, models


def _fields(model: type[Frozen], prefix: str = "") -> Iterator[tuple[str, type[Frozen]]]:
    """Dotted path of every field at any depth, and the model that has it."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", model
        for inner in _models_in(field.annotation):
            yield from _fields(inner, f"{prefix}{name}.")


def _models_in(annotation: Any) -> Iterator[type[Frozen]]:
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


KINDS: dict[str, type[Frozen]] = {
    model.model_fields["kind"].default: model for path, model in _fields(ExperimentConfig) if path.endswith(".kind")
}
"""Model of a mapping by its `kind`."""
