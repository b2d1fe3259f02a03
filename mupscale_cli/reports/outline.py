"""A plan as people think of a network: a tree of layers in which those that are alike stand once. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.text import numbers_text

_OF_A_LAYER = ("weight", "bias")


@dataclass(frozen=True)
class Node:
    """A module or a tensor; where several are alike, all of them.

    Attributes:
        label: its name below its parent's: `layers.0-27`, `q_proj.weight`.
        tensors: every tensor below it; of a leaf those that it stands for, which differ in nothing but a number.
        children: what it is made of; none for a leaf.
    """

    label: str
    tensors: tuple[TensorPlan, ...]
    children: tuple[Node, ...] = ()

    @property
    def num_bytes(self) -> tuple[int, int]:
        """Before and after; a source that becomes several tensors is counted once."""
        sources: dict[str, TensorSpec] = {tensor.source.name: tensor.source for tensor in self.tensors}
        return (sum(spec.num_bytes for spec in sources.values()), sum(t.target.num_bytes for t in self.tensors))

    def as_record(self) -> dict[str, Any]:
        """The node as `--json` shows it."""
        before, after = self.num_bytes
        about = {"name": self.label, "tensors": len(self.tensors), "bytes": before, "wide_bytes": after}
        if self.children:
            return {**about, "children": [child.as_record() for child in self.children]}
        tensor = self.tensors[0]
        return {
            **about,
            "dtype": tensor.target.dtype,
            "shape": list(tensor.source.shape),
            "wide_shape": list(tensor.target.shape),
            "rule": tensor.rule,
            "layout": tensor.layout,
            "parts": [{"coefficient": c, "multiplicity": m} for c, m in tensor.parts],
        }


_Tree = dict[str, "_Tree | TensorPlan"]
_Alike = Mapping[str, "Sequence[_Tree | TensorPlan]"]  # by name, the children of several modules that are alike


def outline(plan: Plan) -> tuple[Node, ...]:
    """The tree of a plan, in the order in which the recipe describes an architecture."""
    places = {rule.pattern.text: index for index, rule in enumerate(plan.recipe.tensors)}
    tree: _Tree = {}
    for tensor in sorted(plan.tensors, key=lambda tensor: places.get(tensor.rule, 0)):
        *path, last = tensor.target.name.split(".")
        inner = tree
        for part in path:
            found = inner.setdefault(part, {})
            if not isinstance(found, dict):  # a tensor whose name others begin with
                found = inner[part] = {"": found}
            inner = found
        inner[last] = tensor
    return tuple(_nodes({name: [child] for name, child in tree.items()}, 0))


def num_layers(plan: Plan) -> int:
    """How many layers a network has: the most modules that are told apart by the first number in their names."""
    numbers: dict[str, set[str]] = {}
    for tensor in plan.tensors:
        parts = tensor.target.name.split(".")
        first = next((index for index, part in enumerate(parts[:-1]) if part.isdigit()), None)
        if first is not None:
            numbers.setdefault(".".join(parts[:first]), set()).add(parts[first])
    return max(map(len, numbers.values()), default=0)


def _nodes(level: _Alike, depth: int) -> Iterator[Node]:
    """The nodes of one level: numbered ones that are alike become one."""
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
    """Whether a module is told better by its children alone: a weight with its bias, and unlike layers."""
    is_layer = all(not child.children and child.label in _OF_A_LAYER for child in node.children)
    return bool(node.children) and (is_layer or all(child.label[0].isdigit() for child in node.children))


def _signature(tree: _Tree | TensorPlan) -> object:
    """What two modules have in common that differ in nothing but their numbers."""
    if isinstance(tree, dict):
        return tuple(sorted((name, _signature(child)) for name, child in tree.items()))
    return (tree.rule, tree.layout, tree.source.dtype, tree.source.shape, tree.target.shape, tree.parts)


def _node(names: Sequence[str], members: Sequence[_Tree | TensorPlan], depth: int) -> Node:
    """One node for modules or tensors that are alike."""
    tensors = tuple(tensor for member in members for tensor in _leaves(member))
    label = _label(names, tensors, depth)
    modules = [member for member in members if isinstance(member, dict)]
    if not modules:
        return Node(label, tensors)
    children = tuple(_nodes({name: [module[name] for module in modules] for name in modules[0]}, depth + 1))
    if len(children) == 1:  # a chain of names is one name
        (only,) = children
        return Node(f"{label}.{only.label}".rstrip("."), only.tensors, only.children)
    return Node(label, tensors, children)


def _leaves(tree: _Tree | TensorPlan) -> Iterator[TensorPlan]:
    if not isinstance(tree, dict):
        yield tree
        return
    for child in tree.values():
        yield from _leaves(child)


def _label(names: Sequence[str], tensors: Sequence[TensorPlan], depth: int) -> str:
    """`0-27`; `0-3 -> 0-7` where an axis counts tensors and grows."""
    if not names[0].isdigit():
        return names[0]
    after = numbers_text(map(int, names))
    paths = [tensor.source.name.split(".") for tensor in tensors if tensor.name_copies > 1]
    before = numbers_text({int(path[depth]) for path in paths if len(path) > depth and path[depth].isdigit()})
    return f"{before} -> {after}" if before and before != after else after
