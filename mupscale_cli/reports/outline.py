"""Outline a plan as a tree of modules in which equal layers are folded into one. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.text import numbers_text

_OF_A_LAYER = ("weight", "bias")


@dataclass(frozen=True)
class Node:
    """A module or tensor, or several equal ones that differ only in a number of their names.

    Attributes:
        label: name below its parent's: `layers.0-27`, `q_proj.weight`.
        tensors: all tensors below it; for a leaf, the equal tensors that it represents.
        children: submodules and tensors; empty for a leaf.
    """

    label: str
    tensors: tuple[TensorPlan, ...]
    children: tuple[Node, ...] = ()

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Sizes before and after; a source that becomes several tensors counts once."""
        before, after = self.sizes
        return sum(before.values()), sum(after.values())

    @cached_property
    def sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """The bytes of each tensor below, by its name before and after; equal tensors have one size."""
        if not self.children:
            source, target = self.tensors[0].source.num_bytes, self.tensors[0].target.num_bytes
            return (
                dict.fromkeys((tensor.source.name for tensor in self.tensors), source),
                dict.fromkeys((tensor.target.name for tensor in self.tensors), target),
            )
        before: dict[str, int] = {}
        after: dict[str, int] = {}
        for child in self.children:
            before.update(child.sizes[0])
            after.update(child.sizes[1])
        return before, after

    def as_record(self) -> dict[str, Any]:
        """Return the node as `--json` prints it."""
        before, after = self.num_bytes
        record = {"name": self.label, "tensors": len(self.tensors), "bytes": before, "wide_bytes": after}
        if self.children:
            return {**record, "children": [child.as_record() for child in self.children]}
        tensor = self.tensors[0]
        return {
            **record,
            "dtype": tensor.target.dtype,
            "shape": list(tensor.source.shape),
            "wide_shape": list(tensor.target.shape),
            "rule": tensor.rule,
            "layout": tensor.layout,
            "parts": [{"coefficient": c, "multiplicity": m} for c, m in tensor.parts],
        }


_Tree = dict[str, "_Tree | TensorPlan"]
_Level = Mapping[str, "Sequence[_Tree | TensorPlan]"]  # by name, the children of several equal modules


def outline(plan: Plan) -> tuple[Node, ...]:
    """Return the top-level nodes of a plan's tree, in the order of the recipe's rules."""
    places = {rule.pattern.text: index for index, rule in enumerate(plan.recipe.tensors)}
    tree: _Tree = {}
    for tensor in sorted(plan.tensors, key=lambda tensor: places.get(tensor.rule, 0)):
        *path, last = tensor.target.name.split(".")
        inner = tree
        for part in path:
            child = inner.setdefault(part, {})
            if not isinstance(child, dict):  # a tensor whose name is the start of others
                child = inner[part] = {"": child}
            inner = child
        inner[last] = tensor
    return tuple(_nodes({name: [child] for name, child in tree.items()}, 0))


def num_layers(names: Iterable[str]) -> int:
    """Return the number of layers: the most modules with a common prefix and different first numbers."""
    numbers: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        first = next((index for index, part in enumerate(parts[:-1]) if part.isdigit()), None)
        if first is not None:
            numbers.setdefault(".".join(parts[:first]), set()).add(parts[first])
    return max(map(len, numbers.values()), default=0)


def _nodes(level: _Level, depth: int) -> Iterator[Node]:
    """Yield the nodes of one level; equal numbered modules become one node."""
    folded: dict[object, list[str]] = {}
    for name, children in level.items():
        folded.setdefault(_signature(children[0]) if name.isdigit() else name, []).append(name)
    for names in folded.values():
        node = _node(names, [child for name in names for child in level[name]], depth)
        if _is_split(node):
            yield from (replace(child, label=f"{node.label}.{child.label}") for child in node.children)
        else:
            yield node


def _is_split(node: Node) -> bool:
    """Return whether to show a module's children in its place: a weight with its bias, or unequal layers."""
    is_layer = all(not child.children and child.label in _OF_A_LAYER for child in node.children)
    return bool(node.children) and (is_layer or all(child.label[0].isdigit() for child in node.children))


def _signature(tree: _Tree | TensorPlan) -> object:
    """Return a key that is equal for modules that differ only in numbers of their names."""
    if isinstance(tree, dict):
        return tuple(sorted((name, _signature(child)) for name, child in tree.items()))
    return (tree.rule, tree.layout, tree.source.dtype, tree.source.shape, tree.target.shape, tree.parts)


def _node(names: Sequence[str], members: Sequence[_Tree | TensorPlan], depth: int) -> Node:
    """Return one node for equal modules or tensors."""
    modules = [member for member in members if isinstance(member, dict)]
    children: tuple[Node, ...] = ()
    if modules:
        children = tuple(_nodes({name: [module[name] for module in modules] for name in modules[0]}, depth + 1))
    tensors = tuple(member for member in members if isinstance(member, TensorPlan))
    tensors += tuple(itertools.chain.from_iterable(child.tensors for child in children))
    label = _label(names, tensors, depth)
    if len(children) == 1:  # a chain of names is one name
        (only,) = children
        return Node(f"{label}.{only.label}".rstrip("."), only.tensors, only.children)
    return Node(label, tensors, children)


def _label(names: Sequence[str], tensors: Sequence[TensorPlan], depth: int) -> str:
    """Label a node: `0-27`, or `0-3 -> 0-7` if an axis that counts tensors grows."""
    if not names[0].isdigit():
        return names[0]
    after = numbers_text(map(int, names))
    paths = [tensor.source.name.split(".") for tensor in tensors if tensor.name_copies > 1]
    before = numbers_text({int(path[depth]) for path in paths if len(path) > depth and path[depth].isdigit()})
    return f"{before} -> {after}" if before and before != after else after
