"""The page of the configs, from the models that check them: every field with its type, bounds and default."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from textwrap import dedent
from typing import Any

from tables import code, plain, table

from mgmrn.config import SCHEMA_VERSION, ExperimentConfig, Frozen
from pipeline.ablation.config import AblationConfig
from pipeline.search.config import SearchConfig

HEAD = f"""# Config

A config is YAML. `extends: benchmark/cub` takes another file's values, the file's own win. `--set loss.scale=25` wins over both.
The error for an unknown field suggests the nearest one. `python -m pipeline config show NAME` prints a whole config with the
origin of every value. The shipped files are listed under [shipped configs](shipped.md).

All fields of an experiment take part in its identity: a run of the same config, data and schema version (now {SCHEMA_VERSION}) is not repeated.
This page is made from the code.
"""

ROOTS: Mapping[str, tuple[type[Frozen], str]] = {
    "Experiment": (ExperimentConfig, "Taken by `train`, `config show`, `data cache`. A benchmark's file is an experiment's `benchmark` alone."),
    "Search": (SearchConfig, "Taken by `search`. See [ablate and search](../how-to/ablate.md)."),
    "Ablation": (AblationConfig, "Taken by `plan`, `ablate`, `compare` and `report`. See [ablate and search](../how-to/ablate.md)."),
}  # fmt: skip

_BOUNDS = {
    "exclusiveMinimum": "> {}",
    "minimum": "≥ {}",
    "exclusiveMaximum": "< {}",
    "maximum": "≤ {}",
    "minLength": "at least {} character",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "minProperties": "at least {}",
    "pattern": "`{}`",
}
ANY = 4
"""Number of types from which a field accepts any YAML value."""
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "none"}


def config_page() -> str:
    """Experiments, searches and ablations."""
    parts = [HEAD]
    for title, (model, text) in ROOTS.items():
        schema = model.model_json_schema()
        parts += [f"## {title}\n\n{text}\n", *_sections(schema, model.__name__)]
    return "\n".join(parts)


def _sections(schema: Mapping[str, Any], name: str) -> Iterator[str]:
    """A model's table, and those of all models in its fields, each once for each place that it has."""
    waiting, done = [("", name)], set()
    while waiting:
        path, name = waiting.pop(0)
        if (path, name) in done:
            continue
        done.add((path, name))
        model = schema.get("$defs", {}).get(name, schema)
        yield _section(model, name, path)
        inner = [
            (_place(path, field, one), child) for field, one in model["properties"].items() for child in _models(one)
        ]
        waiting = inner + waiting


def _section(schema: Mapping[str, Any], name: str, path: str) -> str:
    texts = _field_texts(name)
    rows = []
    for field, one in schema["properties"].items():
        models = list(_models(one))
        kind = " or ".join(f"[{model}](#{model.lower()})" for model in models) or _kind(one)
        default = code(json.dumps(one["default"], ensure_ascii=False)) if "default" in one and not models else ""
        must = "must be given" if field in schema.get("required", ()) else default
        rows.append([code(f"{path}.{field}" if path else field), kind, must, plain(texts.get(field, ""))])
    columns = ["field", "type and bounds", "default", "meaning"]
    return f"### {_title(schema, path)} {{#{name.lower()}}}\n\n{plain(schema['description'])}\n\n{table(columns, rows)}"


def _title(schema: Mapping[str, Any], path: str) -> str:
    """Path of the model, and its kind where there are several."""
    kind = schema["properties"].get("kind", {}).get("const")
    return f"{path or 'Top'}{f' of kind {kind}' if kind else ''}"


def _place(path: str, field: str, schema: Mapping[str, Any]) -> str:
    """Where the models in a field stand: in a mapping, below a name."""
    place = f"{path}.{field}" if path else field
    return f"{place}.NAME" if schema.get("type") == "object" else place


def _models(schema: Any) -> Iterator[str]:
    """Names of the models in a field's schema, in their order."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for key in ("oneOf", "anyOf", "allOf", "additionalProperties", "items"):
            yield from _models(schema.get(key))
    elif isinstance(schema, list):
        for one in schema:
            yield from _models(one)


def _kind(schema: Mapping[str, Any]) -> str:
    """Type and bounds of a value, in words."""
    if "const" in schema:
        return code(str(schema["const"]))
    if "enum" in schema:
        return " · ".join(code(str(one)) for one in schema["enum"])
    if "anyOf" in schema:
        kinds = list(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
        return " or ".join(kinds) if len(kinds) < ANY else "any value"
    bounds = ", ".join(text.format(schema[name]) for name, text in _BOUNDS.items() if name in schema)
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"list of {len(schema['prefixItems'])}: {_kind(schema['prefixItems'][0])}"
        return (
            f"list ({bounds}) of: {_kind(schema['items'])}" if bounds else f"list of: {_kind(schema.get('items', {}))}"
        )
    if schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to: {_kind(inner if isinstance(inner, dict) else {})}"
    return " ".join([_TYPES.get(schema.get("type", ""), "any value"), *([bounds] if bounds else [])])


def _field_texts(name: str) -> dict[str, str]:
    """The strings that stand below a model's fields, those of the models that it builds on included."""
    found: dict[str, str] = {}
    for model in reversed(_models_by_name()[name].__mro__):
        if issubclass(model, Frozen):
            body = ast.parse(dedent(inspect.getsource(model))).body[0].body  # type: ignore[attr-defined]
            for field, text in pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[ast.unparse(field.target)] = inspect.cleandoc(ast.literal_eval(text.value))
    return found


def _models_by_name() -> dict[str, type[Frozen]]:
    def below(model: type[Frozen]) -> Iterator[type[Frozen]]:
        yield model
        for child in model.__subclasses__():
            yield from below(child)

    return {model.__name__: model for model in below(Frozen)}
