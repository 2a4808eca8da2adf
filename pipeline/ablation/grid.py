"""The variants of an ablation, each as a config on each benchmark; what cannot be told apart is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from mgmrn.errors import UserError
from pipeline.ablation.config import AblationFile, Overrides
from pipeline.config.compose import ComposedConfig, load_experiment
from pipeline.config.validation import all_at_once
from pipeline.config.yaml_tree import yaml_value

NOT_OVERRIDDEN = {
    "seed": "every cell is run with every seed of `seeds`",
    "benchmark.name": "name data sets under `benchmarks`",
}
"""Path → where it belongs instead."""

NOT_VARIED = dict.fromkeys(
    ("benchmark.tune_seen_fraction", "benchmark.tune_split_seed"),
    "all variants are judged on the same images: set it under `fixed`",
)
"""Path → why no variant may differ in it."""


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


@dataclass(frozen=True)
class _Draft:
    """A variant before it is composed."""

    name: str
    overrides: Overrides
    source: str
    origins: Mapping[str, str]
    """Path of each override → `file:line`."""


def make_grid(file: AblationFile) -> Grid:
    """Composes every variant on every benchmark.

    Raises:
        UserError: all that is wrong at once: unknown paths, values outside the schema, a variant that changes nothing,
            two variants with one config or one name, two benchmarks with one name.
    """
    fixed = file.config.fixed
    common = _Draft("", fixed, file.label, {path: file.place("fixed", path) for path in fixed})
    drafts = list(_drafts(file))
    problems = [*_refused(common, NOT_OVERRIDDEN)]
    problems += [problem for draft in drafts for problem in _refused(draft, NOT_OVERRIDDEN | NOT_VARIED)]
    variants: list[Variant] = []
    for draft in drafts:
        try:
            variants.append(Variant(draft.name, draft.overrides, draft.source, _composed(file, common, draft)))
        except UserError as error:
            problems.append(error)
    if not problems:
        if file.config.mode == "grid":
            variants = _without_the_base(variants)
            if len(variants) == 1:
                problems.append(UserError("no combination of the factors differs from the base", file.place("factors")))
        problems += [*_twins(variants, file), *_namesakes(variants), *_same_benchmarks(variants[0], file)]
    if problems:
        # What is wrong in `fixed`, or in a setting of a factor, is wrong in many variants.
        raise all_at_once(list({str(problem): problem for problem in problems}.values()), file.label)
    return Grid(file, tuple(variants))


def _drafts(file: AblationFile) -> Iterator[_Draft]:
    """The base first; in a list the variants alone."""
    config = file.config
    if config.mode != "list":
        yield _Draft(config.base_name, {}, file.place("base"), {})
    for name, overrides in config.variants.items():
        origins = {path: file.place("variants", name, path) for path in overrides}
        yield _Draft(name, overrides, file.place("variants", name), origins)
    if config.mode == "grid":
        factors = [[(factor, setting) for setting in settings] for factor, settings in config.factors.items()]
        yield from (_combination(file, combined) for combined in product(*factors))


def _combination(file: AblationFile, combined: Sequence[tuple[str, str]]) -> _Draft:
    """One setting of each factor; of a path in several of them the last one counts."""
    values: Overrides = {}
    origins: dict[str, str] = {}
    for factor, setting in combined:
        overrides = file.config.factors[factor][setting]
        values |= overrides
        origins |= {path: file.place("factors", factor, setting, path) for path in overrides}
    return _Draft("-".join(setting for _, setting in combined), values, file.place("factors"), origins)


def _composed(file: AblationFile, common: _Draft, draft: _Draft) -> dict[str | None, ComposedConfig]:
    config = file.config
    texts = [f"{path}={yaml_value(value)}" for path, value in {**common.overrides, **draft.overrides}.items()]
    origins = {**common.origins, **draft.origins}
    return {
        name: load_experiment(config.base, texts, benchmark=name, origins=origins)
        for name in config.benchmarks or (None,)
    }


def _refused(draft: _Draft, hints: Mapping[str, str]) -> Iterator[UserError]:
    for path, hint in hints.items():
        if path in draft.overrides:
            yield UserError(f"{path} may not be overridden", draft.origins[path], hint)


def _without_the_base(variants: Sequence[Variant]) -> list[Variant]:
    """Without the combination of settings that change nothing, which is the base."""
    again = next((one for one in variants[1:] if _same(one, variants[0])), None)
    return [one for one in variants if one is not again]


def _twins(variants: Sequence[Variant], file: AblationFile) -> Iterator[UserError]:
    """Variants that are the same on every benchmark."""
    hint = "remove it, or change what it overrides"
    for position, later in enumerate(variants):
        earlier = next((one for one in variants[:position] if _same(one, later)), None)
        if earlier is None:
            continue
        if earlier is variants[0] and file.config.mode != "list":
            yield UserError(f"the variant {later.name} changes nothing: it is {earlier.name}", later.source, hint)
        else:
            yield UserError(f"the variant {later.name} has the same config as {earlier.name}", later.source, hint)


def _namesakes(variants: Sequence[Variant]) -> Iterator[UserError]:
    names: set[str] = set()
    for variant in variants:
        if variant.name in names:
            hint = "rename one, or set base_name"
            yield UserError(f"two variants are called {variant.name}", variant.source, hint)
        names.add(variant.name)


def _same_benchmarks(base: Variant, file: AblationFile) -> Iterator[UserError]:
    """Two files of benchmarks may describe one data set."""
    names = [composed.config.benchmark.name for composed in base.configs.values()]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield UserError(f"two benchmarks are called {name}", file.place("benchmarks"), "name each data set once")


def _same(one: Variant, other: Variant) -> bool:
    return all(one.configs[name].config == other.configs[name].config for name in one.configs)
