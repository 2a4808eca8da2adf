"""The variants of an ablation, each as a config on each benchmark; what cannot be told apart is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from mgmrn.errors import UserError
from pipeline.ablation.config import AblationFile, Overrides
from pipeline.compose import ComposedConfig, load_experiment
from pipeline.validation import all_at_once
from pipeline.yaml_tree import source_of, yaml_value


@dataclass(frozen=True)
class Variant:
    """A named set of overrides, and its config on every benchmark."""

    name: str
    overrides: Overrides
    source: str
    """`file:line` of its name."""
    configs: Mapping[str | None, ComposedConfig]
    """Benchmark, or None for the base's own → the config, with its own seed."""


@dataclass(frozen=True)
class Grid:
    """Variants × benchmarks × seeds."""

    file: AblationFile
    variants: tuple[Variant, ...]
    """The first is the one that the others are compared with."""

    @property
    def base(self) -> Variant:
        """What the others are compared with."""
        return self.variants[0]

    @property
    def benchmarks(self) -> tuple[str | None, ...]:
        """As the file names them; None: the base experiment's own."""
        return self.file.config.benchmarks or (None,)


def make_grid(file: AblationFile) -> Grid:
    """Composes every variant on every benchmark.

    Raises:
        UserError: all that is wrong at once: unknown paths, values outside the schema, a variant that changes nothing,
            two variants with one config.
    """
    problems: list[UserError] = []
    variants: list[Variant] = []
    for name, overrides, source in _named(file):
        try:
            variants.append(Variant(name, overrides, source, _composed(file, overrides, source)))
        except UserError as error:
            problems.append(error)
    if file.config.mode == "grid" and not problems:
        # The combination of settings that change nothing is the base.
        variants = [variants[0], *(one for one in variants[1:] if not _same(one, variants[0]))]
    problems = problems or list(_twins(variants))
    if problems:
        raise all_at_once(problems, file.label)
    return Grid(file, tuple(variants))


def _named(file: AblationFile) -> Iterator[tuple[str, Overrides, str]]:
    """Name, overrides and place of every variant, the base first."""
    config, tree = file.config, file.tree
    if config.mode != "list":
        yield config.base_name, {}, source_of(["base"], tree)
    for name, overrides in config.variants.items():
        yield name, overrides, source_of(["variants", name], tree)
    if config.mode == "grid":
        for settings in product(*(factor.items() for factor in config.factors.values())):
            overrides = {path: value for _, one in settings for path, value in one.items()}
            yield "-".join(name for name, _ in settings), overrides, source_of(["factors"], tree)


def _composed(file: AblationFile, overrides: Overrides, source: str) -> dict[str | None, ComposedConfig]:
    config = file.config
    values = {**config.fixed, **overrides}
    origins = {path: _origin(file, path, overrides, source) for path in values}
    texts = [f"{path}={yaml_value(value)}" for path, value in values.items()]
    return {
        name: load_experiment(config.base, texts, benchmark=name, origins=origins)
        for name in config.benchmarks or (None,)
    }


def _origin(file: AblationFile, path: str, overrides: Overrides, source: str) -> str:
    """Where an override was written: as exactly as the file tells."""
    if path not in overrides:
        return source_of(["fixed", path], file.tree)
    for name, one in file.config.variants.items():
        if one is overrides:
            return source_of(["variants", name, path], file.tree)
    return source


def _twins(variants: list[Variant]) -> Iterator[UserError]:
    """Variants that are the same on every benchmark."""
    first = variants[0]
    for position, later in enumerate(variants):
        for earlier in variants[:position]:
            if _same(earlier, later):
                what = (
                    f"changes nothing: it is {first.name}"
                    if earlier is first
                    else f"has the same config as {earlier.name}"
                )
                hint = "remove it, or change what it overrides"
                yield UserError(f"the variant {later.name} {what}", later.source, hint)
                break


def _same(one: Variant, other: Variant) -> bool:
    return all(one.configs[name].config == other.configs[name].config for name in one.configs)
