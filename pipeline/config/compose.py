"""An experiment's file and `--set` overrides → one frozen config, with the origin of every value and every error at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from mgmrn.config import BenchmarkConfig, ExperimentConfig
from mgmrn.errors import UserError
from mgmrn.weights import find_weights
from pipeline.config.files import find_config, label_of, merge, read_config
from pipeline.config.validation import all_at_once, validate
from pipeline.config.yaml_tree import DEFAULT, Section, parse_yaml, source_of, yaml_value

COMMAND_LINE = "--set"


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


def load_experiment(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    benchmark: str | None = None,
    origins: Mapping[str, str] = MappingProxyType({}),
) -> ComposedConfig:
    """Reads an experiment, applies overrides and validates it.

    Args:
        name_or_path: name of a shipped experiment (`cub`), or path of a `.yaml` file.
        overrides: `dotted.path=value` with the value in YAML; later ones win.
        benchmark: name or file of a benchmark that takes the place of the experiment's own.
        origins: dotted path → where its override was written; on the command line where nothing is said.

    Raises:
        UserError: unknown experiment (with the nearest name and the list), unreadable YAML, or any number of wrong
            values, one line each.
    """
    path = find_config("experiment", name_or_path)
    problems: list[UserError] = []
    tree = read_config(path)
    if benchmark is not None:
        tree = merge(tree, read_config(find_config("benchmark", benchmark)))
    for override in overrides:
        try:
            tree = merge(tree, _parse_override(override, origins))
        except UserError as error:
            problems.append(error)
    config, found = validate(tree, ExperimentConfig)
    problems += found
    if config is None or problems:
        raise all_at_once(problems, label_of(path))
    return ComposedConfig(path.stem, config, _provenance(config, tree))


def load_benchmark_config(name_or_path: str) -> BenchmarkConfig:
    """Reads the `benchmark` of a shipped benchmark file (`cub`) or of any config file.

    Raises:
        UserError: as `load_experiment`.
    """
    path = find_config("benchmark", name_or_path)
    config, problems = validate(read_config(path), ExperimentConfig)
    if config is None:
        raise all_at_once(problems, label_of(path))
    return config.benchmark


def resolve_weights(config: ExperimentConfig, data_root: Path) -> ExperimentConfig:
    """The config with a relative weights path made absolute: below the data root, else below the working folder.

    Raises:
        UserError: when the file is in neither place.
    """
    backbone = config.model.backbone
    found = backbone.model_copy(update={"weights": find_weights(backbone.weights, data_root)})
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": found})})


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


def _parse_override(override: str, origins: Mapping[str, str]) -> Section:
    path, equals, text = override.partition("=")
    names = path.strip().split(".")
    origin = origins.get(path, COMMAND_LINE)
    if not equals or not all(names):
        raise UserError(f"'{override}' is not an override", origin, "write --set section.field=value")
    tree = parse_yaml(text, origin, line_numbers=False)
    for name in reversed(names):
        tree = Section({name: tree}, origin)
    assert isinstance(tree, Section)
    return tree


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or (path and not value):
        yield path, value
        return
    for name, child in value.items():
        yield from _flatten(child, f"{path}.{name}" if path else name)


def _provenance(config: ExperimentConfig, tree: Section) -> dict[str, str]:
    return {path: source_of(path.split("."), tree) for path in values_of(config)}


def _yaml_lines(value: Mapping[str, Any], prefix: str, provenance: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    indent = "  " * prefix.count(".")
    for name, child in value.items():
        path = f"{prefix}{name}"
        if isinstance(child, dict) and child:
            yield f"{indent}{name}:", ""
            yield from _yaml_lines(child, f"{path}.", provenance)
        else:
            yield f"{indent}{name}: {yaml_value(child)}", provenance.get(path, DEFAULT)
