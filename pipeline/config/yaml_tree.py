"""YAML's plain subset as a tree that remembers where every value was written.

A config holds numbers, text, true, false, null, lists of them, and mappings; `5e-4` is a float; tags and anchors are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mgmrn.errors import UserError

DEFAULT = "default"
"""Origin of a value that nobody wrote."""


@dataclass(frozen=True)
class Leaf:
    """A value."""

    value: Any
    source: str
    """`file:line`, `--set` or `default`."""


@dataclass(frozen=True)
class Section:
    """A mapping of names to values or further mappings."""

    children: dict[str, Leaf | Section]
    source: str


Tree = Leaf | Section


def parse_yaml(text: str, label: str, line_numbers: bool = True) -> Tree:
    """The tree of a text; `label` names it in errors.

    Raises:
        UserError: for what is no YAML or more than plain values.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return Leaf(None, label) if node is None else _convert(loader, node, label, line_numbers)
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


def _convert(loader: _Loader, node: yaml.Node, label: str, line_numbers: bool) -> Tree:
    source = f"{label}:{node.start_mark.line + 1}" if line_numbers else label
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python/"):
        raise UserError(f"the tag {node.tag} is not allowed: a config holds plain values only", source)
    if isinstance(node, yaml.MappingNode):
        children: dict[str, Tree] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            place = f"{label}:{key_node.start_mark.line + 1}" if line_numbers else label
            if not isinstance(key, str):
                raise UserError("a field's name must be text", place)
            if key in children:
                raise UserError(f"the field {key} is given twice", place)
            children[key] = _convert(loader, value_node, label, line_numbers)
        return Section(children, source)
    value = loader.construct_object(node, deep=True)
    if not is_plain(value):
        raise UserError(f"{value!r} is neither a number, text, true, false, null nor a list of them", source)
    return Leaf(value, source)


def is_plain(value: object) -> bool:
    """Whether a value may stand in a config."""
    if isinstance(value, list):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def plain(tree: Tree) -> Any:
    """The values without their origins."""
    if isinstance(tree, Leaf):
        return tree.value
    return {name: plain(child) for name, child in tree.children.items()}


def source_of(names: Sequence[str], tree: Tree) -> str:
    """Where the value under a path of names was written."""
    for name in names:
        if not isinstance(tree, Section) or name not in tree.children:
            return DEFAULT
        tree = tree.children[name]
    return tree.source


def yaml_value(value: object) -> str:
    """One value in YAML's one-line form; `parse_yaml` reads it as the same value of the same type."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, with `5e-4` as a float and without anchors."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="anchors and aliases are not allowed, use extends", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """YAML's safe subset, with quotes around text that `_Loader` would take for a float."""


# YAML 1.1, which PyYAML reads, takes a number without a dot but with an exponent for text.
_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
