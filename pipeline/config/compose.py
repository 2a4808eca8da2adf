"""From an experiment's file and `--set` overrides to one frozen config, with the origin of every value, or all errors at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from mgmrn.config import BenchmarkConfig, ExperimentConfig
from mgmrn.errors import UserError
from mgmrn.trunks import TIMM
from mgmrn.weights import find_weights
from pipeline.config.files import find_config, label_of, merge, read_config
from pipeline.config.validation import all_at_once, validate
from pipeline.config.yaml_tree import DEFAULT, Leaf, Section, parse_yaml, plain_at, source_of, yaml_value
from pipeline.redaction import redact

COMMAND_LINE = "--set"


@dataclass(frozen=True)
class ComposedConfig:
    """A resolved config and the origins of its values."""

    name: str
    config: ExperimentConfig
    provenance: Mapping[str, str]
    """Dotted path of every value → `file:line`, `--set` or `default`."""
    overrides: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Experiment, benchmark and overrides as one sentence in Markdown; passwords are masked."""
        changed = redact(", ".join(f"`{override}`" for override in self.overrides))
        return f"`{self.name}` on {self.config.benchmark.name}" + (f" with {changed}" if changed else "")


def load_experiment(
    name_or_path: str,
    overrides: Sequence[str] = (),
    *,
    benchmark: str | None = None,
    origins: Mapping[str, str] = MappingProxyType({}),
) -> ComposedConfig:
    """Read a shipped experiment (`cub`) or a YAML file, apply overrides (`dotted.path=value`, later ones win) and validate it.

    `benchmark` is the name or file of one that replaces the experiment's own, `origins` has origins of overrides other than `--set`.
    Raises `UserError` for an unknown experiment, unreadable YAML, or any number of wrong values, one line each.
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
    try:
        tree = merge(_settings_of_timm(tree), tree)
    except UserError as error:
        problems.append(error)
    config, found = validate(tree, ExperimentConfig)
    if config is None or problems:
        raise all_at_once([*problems, *found], label_of(path))
    provenance = {path: source_of(path.split("."), tree) for path in values_of(config)}
    return ComposedConfig(path.stem, config, provenance, tuple(overrides))


def load_benchmark_config(name_or_path: str) -> BenchmarkConfig:
    """The `benchmark` of a shipped benchmark file (`cub`) or of any config file."""
    path = find_config("benchmark", name_or_path)
    config, problems = validate(read_config(path), ExperimentConfig)
    if config is None:
        raise all_at_once(problems, label_of(path))
    return config.benchmark


def resolve_weights(config: ExperimentConfig, data_root: Path) -> ExperimentConfig:
    """The config with the absolute path of its weights file, which is relative to the data root or the working folder."""
    backbone = config.model.backbone
    found = backbone.model_copy(update={"weights": find_weights(backbone.weights, data_root)})
    return config.model_copy(update={"model": config.model.model_copy(update={"backbone": found})})


def values_of(config: BaseModel) -> dict[str, Any]:
    """Dotted path → value of every field; lists and empty mappings are values."""
    return dict(_flatten(config.model_dump(mode="json"), ""))


def diff(before: ExperimentConfig, after: ExperimentConfig) -> dict[str, tuple[object, object]]:
    """Path → values before and after where two configs differ; None on the side that lacks the value."""
    old, new = values_of(before), values_of(after)
    both = {path: (old.get(path), new.get(path)) for path in sorted(old | new)}
    return {path: (one, other) for path, (one, other) in both.items() if one != other}


def show(composed: ComposedConfig) -> str:
    """The full config as YAML with the origin of every value; reading it gives the same config."""
    lines = list(_yaml_lines(composed.config.model_dump(mode="json"), "", composed.provenance))
    width = min(60, max(len(line) for line, _ in lines))
    return "".join(f"{line:{width}}  # {source}\n" if source else f"{line}\n" for line, source in lines)


def _settings_of_timm(tree: Section) -> Section:
    """Size and normalisation of the pictures of a backbone from timm. Raises UserError for a name that timm does not know."""
    name, weights = (plain_at(tree, "model", "backbone", field) for field in ("name", "weights"))
    if not (isinstance(name, str) and name.startswith(TIMM) and name.removeprefix(TIMM).isidentifier()):
        return Section({}, "timm")
    from mgmrn.model.timm_backbone import picture_settings

    settings = picture_settings(name, weights if isinstance(weights, str) else "DEFAULT")
    images = Section({field: Leaf(value, "timm") for field, value in settings.items()}, "timm")
    return Section({"benchmark": Section({"images": images}, "timm")}, "timm")


def _parse_override(override: str, origins: Mapping[str, str]) -> Section:
    path, equals, text = override.partition("=")
    names = path.strip().split(".")
    origin = origins.get(path, COMMAND_LINE)
    if not equals or not all(names):
        raise UserError(f"'{override}' is not an override", origin, "write --set section.field=value")
    section = Section({names[-1]: parse_yaml(text, origin, line_numbers=False)}, origin)
    for name in reversed(names[:-1]):
        section = Section({name: section}, origin)
    return section


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or (path and not value):
        yield path, value
        return
    for name, child in value.items():
        yield from _flatten(child, f"{path}.{name}" if path else name)


def _yaml_lines(value: Mapping[str, Any], prefix: str, provenance: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Lines of YAML, each with the origin of its value; empty for the head of a mapping."""
    indent = "  " * prefix.count(".")
    for name, child in value.items():
        path = f"{prefix}{name}"
        if isinstance(child, dict) and child:
            yield f"{indent}{name}:", ""
            yield from _yaml_lines(child, f"{path}.", provenance)
        else:
            yield f"{indent}{name}: {yaml_value(child)}", provenance.get(path, DEFAULT)
