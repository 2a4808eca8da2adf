"""YAML without tags, anchors and what YAML 1.1 and 1.2 read differently, as a tree that keeps the origin of every value."""

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
DEEPEST = 20

_AMBIGUOUS = "!ambiguous"
_RESOLVERS = {
    None: [
        (tag, re.compile(rf"(?:{pattern})\Z"))
        for tag, pattern in (
            (_AMBIGUOUS, r"(?i:yes|no|on|off)|<<|\d{4}-\d\d?-\d\d?(?:[Tt\s].*)?"),
            # Octal, binary and signed hexadecimal numbers, numbers to base 60 or with underscores, hexadecimal fractions.
            (_AMBIGUOUS, r"[-+]?0[0-9_]+|0o[0-7]+|[-+]?0b[01_]+|[-+]0x[\da-fA-F]+|[-+]?\d[\d_]*(?::\d+)+(?:\.[\d_]*)?"),
            (_AMBIGUOUS, r"[-+]?[\d.][\d.]*_[\d._]*(?:[eE][-+]?\d+)?|[-+]?0x[\da-fA-F.]*[_pP][\da-fA-F_+-]*"),
            ("tag:yaml.org,2002:null", r"~|null|Null|NULL|"),
            ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE"),
            # A longer one is a float: Python reads no integer of thousands of digits.
            ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]{0,99})|0x[0-9a-fA-F]{1,80}"),
            ("tag:yaml.org,2002:float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"),
            ("tag:yaml.org,2002:float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
        )
    ]
}
"""Tags of plain scalars by YAML 1.2, and one for those that YAML 1.1 reads as another value."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


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

    def place(line: int) -> str:
        return f"{label}:{line + 1}" if line_numbers else label

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return Leaf(None, label) if node is None else _convert(loader, node, place)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        raise UserError(f"not valid YAML: it holds the character {chr(error.character)!a}", place(line)) from error
    except yaml.MarkedYAMLError as error:
        where = place(error.problem_mark.line) if error.problem_mark else label
        raise UserError(f"not valid YAML: {error.problem}", where) from error


def _convert(loader: _Loader, node: yaml.Node, place: Callable[[int], str]) -> Tree:
    source = place(node.start_mark.line)
    if isinstance(node, yaml.MappingNode):
        children: dict[str, Tree] = {}
        for key, value in node.value:
            where = place(key.start_mark.line)
            if not isinstance(key, yaml.ScalarNode) or not key.value:
                raise UserError("a field's name must be text", where)
            if key.value in children:
                raise UserError(f"the field {key.value} is given twice", where)
            children[key.value] = _convert(loader, value, place)
        return Section(children, source)
    if isinstance(node, yaml.SequenceNode):
        items = [_convert(loader, item, place) for item in node.value]
        if section := next((item for item in items if isinstance(item, Section)), None):
            raise UserError("a list holds numbers, text, true, false, null and lists, but no mappings", section.source)
        return Leaf([plain(item) for item in items], source)
    if node.tag == _AMBIGUOUS:
        hint = "write a plain decimal number, true or false, or put text in quotes"
        raise UserError(f"{node.value} is read differently by YAML 1.1 and 1.2", source, hint)
    value = loader.construct_object(node)
    if isinstance(value, str) and (found := _CONTROL.search(value)):
        raise UserError(f"text with the character {found[0]!a} is not allowed", source)
    return Leaf(value, source)


def plain(tree: Tree) -> Any:
    """Values of a tree without their origins."""
    if isinstance(tree, Leaf):
        return tree.value
    return {name: plain(child) for name, child in tree.children.items()}


def plain_at(tree: Tree, *names: str) -> Any:
    """Value under a path of names without its origins; None where there is none."""
    for name in names:
        if not isinstance(tree, Section) or name not in tree.children:
            return None
        tree = tree.children[name]
    return plain(tree)


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
    """Loader of the safe subset of YAML, without tags, anchors and deep nesting."""

    yaml_implicit_resolvers = _RESOLVERS
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        problem = f"nested more than {DEEPEST} deep" if self.depth == DEEPEST else None
        if event.anchor:
            problem = "anchors and aliases are not allowed, use extends"
        elif getattr(event, "tag", None):
            problem = f"the tag {event.tag} is not allowed: a config holds plain values only"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Dumper that puts quotes around text that `_Loader` would not read as text."""

    yaml_implicit_resolvers = _RESOLVERS
