"""The plain subset of YAML as a tree that keeps the origin of every value.

A config holds numbers, text, true, false, null, lists of them, and mappings; `5e-4` is a float; tags and anchors are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from mgmrn.errors import UserError

DEFAULT = "default"
"""Origin of a value that no file and no option sets."""


@dataclass(frozen=True)
class Leaf:
    """A value and its origin."""

    value: Any
    source: str
    """`file:line`, `--set` or `default`."""


@dataclass(frozen=True)
class Section:
    """A mapping of names to values or further mappings."""

    children: dict[str, Leaf | Section]
    source: str


Tree = Leaf | Section


@lru_cache(maxsize=512)
def parse_yaml(text: str, label: str, line_numbers: bool = True) -> Tree:
    """Tree of a text, with origins like `label:line`; calls share it, so treat it as read-only."""

    def place(mark: yaml.Mark | None) -> str:
        return f"{label}:{mark.line + 1}" if mark and line_numbers else label

    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return Leaf(None, label) if node is None else _convert(loader, node, place)
    except UserError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        problem, mark = getattr(error, "problem", error), getattr(error, "problem_mark", None)
        raise UserError(f"not valid YAML: {problem}", place(mark)) from error
    except RecursionError as error:
        raise UserError("not valid as a config: nested too deeply", label) from error


def _convert(loader: _Loader, node: yaml.Node, place: Callable[[yaml.Mark | None], str]) -> Tree:
    source = place(node.start_mark)
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python/"):
        raise UserError(f"the tag {node.tag} is not allowed: a config holds plain values only", source)
    if isinstance(node, yaml.MappingNode):
        children: dict[str, Tree] = {}
        for key, value in node.value:
            if not isinstance(key.value, str):
                raise UserError("a field's name must be text", place(key.start_mark))
            if key.value in children:
                raise UserError(f"the field {key.value} is given twice", place(key.start_mark))
            children[key.value] = _convert(loader, value, place)
        return Section(children, source)
    value = loader.construct_object(node, deep=True)
    if not is_plain(value):
        raise UserError(f"{value!r} is neither a number, text, true, false, null nor a list of them", source)
    return Leaf(value, source)


def is_plain(value: object) -> bool:
    """Whether a config may hold this value outside a mapping."""
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def plain(tree: Tree) -> Any:
    """Values of a tree without their origins."""
    if isinstance(tree, Leaf):
        return tree.value
    return {name: plain(child) for name, child in tree.children.items()}


def source_of(names: Sequence[str], tree: Tree) -> str:
    """Origin of the value under a path of names."""
    for name in names:
        if not isinstance(tree, Section) or name not in tree.children:
            return DEFAULT
        tree = tree.children[name]
    return tree.source


def yaml_value(value: object) -> str:
    """One value in the one-line form of YAML; `parse_yaml` reads it as the same value of the same type."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


class _Loader(yaml.SafeLoader):
    """Loader of the safe subset of YAML, with `5e-4` as a float and without anchors."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed, use extends", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Dumper that puts quotes around text that `_Loader` would read as a float."""


# YAML 1.1, which PyYAML reads, takes a number with an exponent but without a dot for text.
_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
