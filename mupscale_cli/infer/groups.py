"""Group tensors by name and size, and list the layouts that each group's sizes and module allow."""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from mupscale_cli.infer.axes import Axes
from mupscale_cli.infer.errors import InferError
from mupscale_cli.infer.forms import possible_forms
from mupscale_cli.infer.layouts import Dimension, Group
from mupscale_cli.infer.shapes import DoubledShapes, Monomial, Polynomial, fit_polynomial
from mupscale_cli.infer.vocabulary import INNER, INNER_ALONE, INNER_NORM, OUTER, module_of
from mupscale_cli.text import NUMBER_IN_NAME, starred

_NameAxes = Mapping[str, tuple[tuple[int, str], ...]]


def find_groups(doubled: DoubledShapes, axes: Axes, model: nn.Module, order: Sequence[str]) -> tuple[Group, ...]:
    """Group the tensors on disk by their names and by the polynomials of their sizes.

    Args:
        doubled: shapes with axes doubled.
        axes: the axes to express sizes in.
        model: the tiny model, for the kinds of modules.
        order: the names of the tensors on disk, in order.

    Raises:
        InferError: a size is not a sum of products of the axes.
    """
    name_axes = _find_name_axes(doubled, axes)
    moving_axes = _find_moving_axes(doubled, axes)
    modules = dict(model.named_modules())
    attentions = _attentions(order)
    grouped: dict[tuple[str, tuple[Polynomial, ...]], list[str]] = defaultdict(list)
    for name in order:
        polynomials = tuple(
            _polynomial(doubled, axes, name, dim, moving) for dim, moving in enumerate(moving_axes[name])
        )
        grouped[_pattern(name, name_axes), polynomials].append(name)
    patterns = _told_apart(grouped, name_axes)
    groups = []
    for pattern, polynomials, names in patterns:
        first = names[0]
        kind = _module_kind(first, modules)
        place = _attention_place(first, attentions)
        dims = tuple(
            possible_forms(value, axes, heads_first=_is_heads_first(place, kind, position, len(polynomials)))
            for position, value in enumerate(polynomials)
        )
        groups.append(
            Group(
                pattern,
                tuple(names),
                name_axes.get(starred(first), ()),
                dims,
                kind,
                tuple(_contractions(kind, dims)),
                first.rpartition(".")[0],
            )
        )
    return tuple(groups)


def last_norm(groups: Iterable[Group], order: list[str]) -> str | None:
    """Return the module with the last gain over the residual stream, in order of execution."""
    owners = {
        name.rpartition(".")[0]
        for group in groups
        if len(group.dims) == 1 and "embed" in group.axes and group.module in ("Norm", "Linear?", "Parameter")
        for name in group.names
    }
    return next((name for name in reversed(order) if name in owners), None)


def split_last(groups: tuple[Group, ...], last_owner: str | None) -> tuple[Group, ...]:
    """Move the tensors of the last norm to groups of their own if they share a group with other layers."""
    result: list[Group] = []
    for group in groups:
        chosen = tuple(name for name in group.names if name.rpartition(".")[0] == last_owner)
        if not chosen or len(chosen) == len(group.names) or "*" not in group.pattern:
            result.append(group)
            continue
        rest = tuple(name for name in group.names if name not in chosen)
        result.append(replace(group, names=rest, owner=rest[0].rpartition(".")[0]))
        pattern = group.pattern.replace("*", "{last}", 1)
        result.append(replace(group, pattern=pattern, names=chosen, owner=str(last_owner)))
    return tuple(result)


# Sizes ---------------------------------------------------------------------------------------------


def _find_moving_axes(doubled: DoubledShapes, axes: Axes) -> dict[str, list[set[str]]]:
    """Return the axes that each dimension of each tensor depends on."""
    base = doubled.shapes()
    moving: dict[str, list[set[str]]] = {name: [set() for _ in shape] for name, shape in base.items()}
    for axis in axes.candidates:
        shapes = doubled.shapes(frozenset({axis.name}))
        for name, shape in base.items():
            if len(shapes.get(name, ())) != len(shape):
                raise InferError(
                    f"`{name}` disappears or changes its number of dimensions when `{axis.key}` is doubled",
                    axes=frozenset({axis.name}),
                )
            for dim, (old, new) in enumerate(zip(shape, shapes[name], strict=True)):
                if old != new:
                    moving[name][dim].add(axis.name)
    return moving


def _polynomial(doubled: DoubledShapes, axes: Axes, name: str, dim: int, moving: set[str]) -> Polynomial:
    try:
        return fit_polynomial(lambda some: doubled.shapes(some)[name][dim], moving, axes.independent_sizes)
    except ValueError as error:
        if moving <= axes.still.keys():
            return (Monomial((), doubled.shapes()[name][dim]),)
        raise InferError(
            f"dimension {dim} of `{name}` is not a sum of products of {sorted(moving)}: {error}",
            axes=frozenset(moving),
        ) from error


# Names ---------------------------------------------------------------------------------------------


def _find_name_axes(doubled: DoubledShapes, axes: Axes) -> _NameAxes:
    """Find the numbers in names that an axis counts: doubling the axis doubles how many there are."""
    before = _numbers_in_names(doubled.shapes())
    name_axes: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for axis in axes.candidates:
        after = _numbers_in_names(doubled.shapes(frozenset({axis.name})))
        for pattern in before.keys() & after.keys():
            for position, (old, new) in enumerate(zip(before[pattern], after[pattern], strict=True)):
                if len(new) == 2 * len(old) and len(old) == axis.size:
                    name_axes[pattern].append((position, axis.name))
    return {pattern: tuple(places) for pattern, places in name_axes.items()}


def _numbers_in_names(names: Iterable[str]) -> dict[str, list[set[str]]]:
    """Collect, for names that differ only in their numbers, the numbers in each position."""
    numbers_of: dict[str, list[set[str]]] = {}
    for name in names:
        numbers = NUMBER_IN_NAME.findall(name)
        positions = numbers_of.setdefault(starred(name), [set() for _ in numbers])
        for values, number in zip(positions, numbers, strict=True):
            values.add(number)
    return numbers_of


def _pattern(name: str, name_axes: _NameAxes, spelled: Mapping[int, str] | None = None) -> str:
    """Replace the numbers of a name by the given text, or else by `{axis}` if an axis counts them, or else by `*`."""
    texts = {position: f"{{{axis}}}" for position, axis in name_axes.get(starred(name), ())} | dict(spelled or {})
    counter = itertools.count()
    return NUMBER_IN_NAME.sub(lambda _: texts.get(next(counter), "*"), name)


def _told_apart(
    grouped: Mapping[tuple[str, tuple[Polynomial, ...]], list[str]], name_axes: _NameAxes
) -> list[tuple[str, tuple[Polynomial, ...], list[str]]]:
    """Return groups with patterns that no two share; where no number tells groups apart, each name is a group."""
    alike: dict[str, list[tuple[tuple[Polynomial, ...], list[str]]]] = defaultdict(list)
    for (pattern, polynomials), names in grouped.items():
        alike[pattern].append((polynomials, names))
    patterns: dict[tuple[str, tuple[Polynomial, ...]], str | None] = {}
    for pattern, members in alike.items():
        found: list[str] | list[None] = [None] * len(members)
        if len(members) == 1:
            found = [pattern]
        else:
            try:
                found = narrowed([names for _, names in members], name_axes)
            except InferError:
                if starred(members[0][1][0]) in name_axes:
                    raise
        patterns |= {(pattern, polynomials): each for (polynomials, _), each in zip(members, found, strict=True)}
    told: list[tuple[str, tuple[Polynomial, ...], list[str]]] = []
    for key, names in grouped.items():
        own = patterns[key]
        told += [(name, key[1], [name]) for name in names] if own is None else [(own, key[1], names)]
    return told


def narrowed(members: Sequence[Sequence[str]], name_axes: _NameAxes) -> list[str]:
    """Return a pattern for each set of names that differ only in numbers; all but the largest name the number."""
    numbers = [[NUMBER_IN_NAME.findall(name) for name in names] for names in members]
    values = {
        position: [{tuples[position] for tuples in some} for some in numbers] for position in range(len(numbers[0][0]))
    }
    distinct = [
        position for position, sets in values.items() if not any(a & b for a, b in itertools.combinations(sets, 2))
    ]
    if not distinct:
        raise InferError(f"`{members[0][0]}` and `{members[1][0]}` differ in size, but no number distinguishes them")
    position = min(distinct, key=lambda position: sum(map(len, values[position])))
    largest = max(range(len(members)), key=lambda index: len(values[position][index]))
    lowest, highest = (extreme(map(int, set().union(*values[position]))) for extreme in (min, max))
    is_stack = len(values[position][largest]) > 1
    patterns = []
    for index, (names, some) in enumerate(zip(members, values[position], strict=True)):
        if index == largest and is_stack:
            text = "*"  # deeper models have more of them, and a rule with fewer `*` comes first
        elif not is_stack:
            text = next(iter(some))  # no two are alike, so that another model's first or last may be any of these
        elif some == {str(lowest)}:
            text = "{first}"
        elif some == {str(highest)}:
            text = "{last}"
        else:
            text = f"{{{','.join(sorted(some, key=int))}}}" if len(some) > 1 else next(iter(some))
        patterns.append(_pattern(names[0], name_axes, {position: text}))
    return patterns


# Modules -------------------------------------------------------------------------------------------


def _module_kind(name: str, modules: Mapping[str, nn.Module]) -> str:
    owner, _, leaf = name.rpartition(".")
    module = modules.get(owner)
    if module is None:
        # The name exists only on disk: assume that a matrix belongs to a linear layer.
        return "Linear?" if leaf == "weight" else "Parameter"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "Bias" if leaf.startswith("bias") else "Linear"
    if leaf == "in_proj_weight":
        return "Linear?"
    if leaf not in ("weight", "bias"):
        return "Parameter"
    if leaf == "bias":
        return "Bias" if not type(module).__name__.lower().endswith("experts") else "Parameter"
    if isinstance(module, nn.Embedding):
        return "Embedding"
    if isinstance(module, nn.Linear):
        return "Linear"
    if type(module).__name__ == "Conv1D":
        return "Conv1D"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "Depthwise" if module.groups > 1 else "Conv"
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        return "Conv1D"
    return "Norm" if "norm" in type(module).__name__.lower() else "Linear?"


def _attentions(names: Iterable[str]) -> frozenset[str]:
    """Return the modules that own projections named as those of attention."""
    owners = {name.rpartition(".")[0] for name in names if INNER_ALONE.fullmatch(module_of(name))}
    return frozenset(owner.rpartition(".")[0] for owner in owners)


def _attention_place(name: str, attentions: Container[str]) -> str:
    """Return where attention uses a tensor: `in` before the scores, `norm` on queries or keys, `out` after, or ``."""
    module, owner = module_of(name), name.rpartition(".")[0]
    if not re.search(r"att|self|mixer|mixing", owner.lower()):
        if INNER_ALONE.fullmatch(module):
            return "in"
        return "out" if owner.rpartition(".")[0] in attentions and OUTER.fullmatch(module) else ""
    if INNER_NORM.fullmatch(module):
        return "norm"
    if INNER.fullmatch(module):
        return "in"
    return "" if "norm" in module.lower() or module == "ln" else "out"


def _is_heads_first(place: str, kind: str, position: int, rank: int) -> bool:
    """Return whether a dimension of an attention tensor is likely laid out by heads."""
    is_output = position == (1 if kind == "Conv1D" else 0)
    if place == "in":
        return rank == 1 or is_output
    return place == "norm" or (place == "out" and rank == 2 and not is_output)


def _contractions(kind: str, dims: Sequence[Dimension]) -> Iterator[frozenset[int]]:
    """Yield possible sets of dimensions that the module sums over, likely ones first."""
    movable = [position for position, dim in enumerate(dims) if dim.axes]
    if kind in ("Linear", "Linear?") and len(dims) == 2:
        likely = 1
    elif kind == "Conv1D" and len(dims) >= 2:
        likely = 0
    elif kind == "Conv" and len(dims) >= 2:
        likely = 1
    elif len(dims) >= 3 and len(movable) > 1:  # a table of positions has one such dimension
        likely = _input_of_experts(dims)
    else:
        likely = -1
    chosen = frozenset({likely} if likely in movable else ())
    yield chosen
    for position in reversed(movable):
        if frozenset({position}) != chosen:
            yield frozenset({position})
    if chosen:
        yield frozenset()
    for pair in itertools.combinations(movable, 2):
        yield frozenset(pair)


def _input_of_experts(dims: Sequence[Dimension]) -> int:
    """Return which of the last two dimensions experts sum over. A dimension with a multiple is the output."""
    last = range(len(dims) - 2, len(dims))
    multiples = [position for position in last if any(m.count > 1 for m in dims[position].polynomial)]
    if len(multiples) == 1:
        return next(position for position in last if position not in multiples)
    return len(dims) - 1
