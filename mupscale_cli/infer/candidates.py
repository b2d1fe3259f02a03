"""Tensors in groups, and for each group the layouts that its sizes and its module allow, the likely ones first."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from torch import nn

from mupscale_cli.infer.axes import Axes
from mupscale_cli.infer.shapes import InferError, Measure, Monomial, Polynomial, polynomial
from mupscale_cli.infer.vocabulary import INNER, INNER_NORM, module_of
from mupscale_cli.text import NUMBER_IN_NAME, starred

Powers = tuple[tuple[str, Fraction], ...]
_MAX_SEGMENTS = 8
_MAX_SPELLED = 3
_MAX_PERMUTATIONS = 60


@dataclass(frozen=True, slots=True)
class Piece:
    """One segment of a dimension: a product, slowest first, with a scale of its own."""

    items: tuple[str | int, ...]
    powers: Powers = ()

    def text(self) -> str:
        return " ".join(map(str, self.items)) + (f"@{powers_text(self.powers)}" if self.powers else "")


@dataclass(frozen=True, slots=True)
class Form:
    """What one dimension is made of: `prefix` around a concatenation of pieces; no pieces for `.`."""

    pieces: tuple[Piece, ...] = ()
    prefix: tuple[str | int, ...] = ()

    def text(self, contracted: bool = False) -> str:
        slash = "/" if contracted else ""
        if not self.pieces:
            return "."
        if len(self.pieces) == 1 and not self.pieces[0].powers:
            items = (*self.prefix, *self.pieces[0].items)
            return slash + (f"({' '.join(map(str, items))})" if len(items) > 1 else str(items[0]))
        if self.prefix and len(set(self.pieces)) == 1 and not self.pieces[0].powers:
            items = (*self.prefix, len(self.pieces), *self.pieces[0].items)
            return f"{slash}({' '.join(map(str, items))})"
        if len(self.pieces) > _MAX_SPELLED and len(set(self.pieces)) == 1 and not self.pieces[0].powers:
            return f"{slash}({len(self.pieces)} {self.pieces[0].text()})"
        inner = f"[{' + '.join(piece.text() for piece in self.pieces)}]"
        return f"{slash}({' '.join(map(str, self.prefix))} {inner})" if self.prefix else slash + inner

    @property
    def axes(self) -> frozenset[str]:
        items = (*self.prefix, *(item for piece in self.pieces for item in piece.items))
        return frozenset(item for item in items if isinstance(item, str))


def powers_text(powers: Powers) -> str:
    """`embed^-0.5 d^-1`, as recipes write it."""
    return " ".join(f"{axis}^{_number(exponent)}" if exponent != 1 else axis for axis, exponent in powers)


def _number(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else str(float(value))


@dataclass(frozen=True, slots=True)
class Dimension:
    """The alternatives for one dimension of a group's tensors."""

    polynomial: Polynomial
    forms: tuple[Form, ...]
    axes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that one rule is to describe.

    Attributes:
        pattern: of their names.
        names: the tensors of the tiny model.
        name_axes: the axes in the name, with the position of the number that each counts.
        dims: the alternatives for each dimension.
        module: the kind of module that owns them.
        contractions: which dimensions are summed over; several where the module does not tell.
        owner: name of the module of the first tensor.
    """

    pattern: str
    names: tuple[str, ...]
    name_axes: tuple[tuple[int, str], ...]
    dims: tuple[Dimension, ...]
    module: str
    contractions: tuple[frozenset[int], ...]
    owner: str

    @property
    def axes(self) -> frozenset[str]:
        """Independent axes and aliases that some alternative has."""
        return frozenset().union(*(dim.axes for dim in self.dims), (name for _, name in self.name_axes))


@dataclass(frozen=True, slots=True)
class Choice:
    """What is assumed of a group at the moment."""

    forms: tuple[int, ...]
    contraction: int = 0
    powers: Powers = ()
    offset: int = 0
    pieces: tuple[tuple[int, int, str, Fraction], ...] = ()  # dimension, piece, axis, exponent

    def with_form(self, dim: int, index: int) -> Choice:
        return replace(self, forms=(*self.forms[:dim], index, *self.forms[dim + 1 :]))

    def with_piece(self, dim: int, piece: int, axis: str, exponent: Fraction) -> Choice:
        others = tuple(other for other in self.pieces if other[:3] != (dim, piece, axis))
        return replace(self, pieces=(*others, (dim, piece, axis, exponent)) if exponent else others)

    def form(self, group: Group, dim: int) -> Form:
        """The form of a dimension, with the powers of its pieces."""
        form = group.dims[dim].forms[self.forms[dim]]
        for _, index, axis, exponent in (piece for piece in self.pieces if piece[0] == dim):
            pieces = list(form.pieces)
            if index >= len(pieces) or (axis not in pieces[index].items and axis not in form.prefix):
                continue
            pieces[index] = replace(pieces[index], powers=(*pieces[index].powers, (axis, exponent)))
            form = replace(form, pieces=tuple(pieces))
        return form

    def with_power(self, axis: str, exponent: Fraction, offset: int = 0) -> Choice:
        others = tuple(power for power in self.powers if power[0] != axis)
        powers = (*others, (axis, exponent)) if exponent else others
        return replace(self, powers=powers, offset=offset if powers else 0)


def layout_text(group: Group, choice: Choice) -> str:
    """The layout in the language of recipes."""
    summed = group.contractions[choice.contraction]
    forms = (choice.form(group, dim) for dim in range(len(group.dims)))
    text = ", ".join(form.text(position in summed) for position, form in enumerate(forms))
    if choice.powers:
        text += f" | {powers_text(choice.powers)}"
        text += f" offset {choice.offset}" if choice.offset else ""
    return text.strip()


# Groups --------------------------------------------------------------------------------------------


def find_groups(measure: Measure, axes: Axes, model: nn.Module, order: Sequence[str]) -> tuple[Group, ...]:
    """Group the tensors on disk by name and by what their sizes are made of.

    Args:
        measure: for the shapes.
        axes: those that are tried.
        model: for the kinds of modules.
        order: the tensors on disk, in their order.

    Raises:
        InferError: a size is no sum of products of the axes.
    """
    base = measure.shapes(frozenset())
    name_axes = _name_axes(measure, axes, base)
    movers = _movers(measure, axes, base)
    modules = dict(model.named_modules())
    grouped: dict[tuple[str, tuple[Polynomial, ...]], list[str]] = defaultdict(list)
    for name in order:
        polynomials = tuple(_polynomial(measure, axes, name, dim, movers[name][dim]) for dim in range(len(base[name])))
        grouped[_pattern(name, name_axes), polynomials].append(name)
    alike: dict[str, list[tuple[tuple[Polynomial, ...], list[str]]]] = defaultdict(list)
    for (pattern, polynomials), names in grouped.items():
        alike[pattern].append((polynomials, names))
    texts = {
        (pattern, polynomials): text
        for pattern, members in alike.items()
        if len(members) > 1
        for (polynomials, _), text in zip(members, _narrowed([names for _, names in members], name_axes), strict=True)
    }
    groups = []
    for (pattern, polynomials), names in grouped.items():
        kind = _kind(names[0], modules)
        inner = _is_inner(names[0])
        dims = tuple(
            _dimension(value, axes, kind, inner, position, len(polynomials))
            for position, value in enumerate(polynomials)
        )
        text = texts.get((pattern, polynomials), pattern)
        contractions = tuple(_contractions(kind, dims))
        groups.append(
            Group(
                text,
                tuple(names),
                name_axes.get(starred(names[0]), ()),
                dims,
                kind,
                contractions,
                names[0].rpartition(".")[0],
            )
        )
    return tuple(groups)


def _pattern(
    name: str, name_axes: Mapping[str, tuple[tuple[int, str], ...]], spelled: Mapping[int, str] | None = None
) -> str:
    """The name with `{axis}` for numbers that count an axis and `*` for the others, save those that are spelled out."""
    found = {place: f"{{{axis}}}" for place, axis in name_axes.get(starred(name), ())} | dict(spelled or {})
    counter = itertools.count()
    return NUMBER_IN_NAME.sub(lambda _: found.get(next(counter), "*"), name)


def _narrowed(members: Sequence[Sequence[str]], name_axes: Mapping[str, tuple[tuple[int, str], ...]]) -> list[str]:
    """Patterns for sets of names that differ in their numbers alone; those that tell them apart are spelled out."""
    numbers = [[tuple(NUMBER_IN_NAME.findall(name)) for name in names] for names in members]
    places = range(len(numbers[0][0]))
    sets = {place: [{found[place] for found in some} for some in numbers] for place in places}
    apart = [place for place in places if all(not (a & b) for a, b in itertools.combinations(sets[place], 2))]
    if not apart:
        raise InferError(f"`{members[0][0]}` and `{members[1][0]}` differ in size, and no one number tells them apart")
    place = min(apart, key=lambda place: sum(map(len, sets[place])))
    patterns = []
    for names, some in zip(members, sets[place], strict=True):
        spelled = sorted(some, key=int)
        text = f"{{{','.join(spelled)}}}" if len(spelled) > 1 else spelled[0]
        patterns.append(_pattern(names[0], name_axes, {place: text}))
    return patterns


def _numbers(names: Iterable[str]) -> dict[str, list[set[str]]]:
    """The numbers in each place of the names that are alike otherwise."""
    found: dict[str, list[set[str]]] = {}
    for name in names:
        numbers = NUMBER_IN_NAME.findall(name)
        places = found.setdefault(starred(name), [set() for _ in numbers])
        for place, number in zip(places, numbers, strict=True):
            place.add(number)
    return found


def _name_axes(measure: Measure, axes: Axes, base: Mapping[str, object]) -> dict[str, tuple[tuple[int, str], ...]]:
    """Which numbers in names an axis counts: those of which there are twice as many where it is doubled."""
    before = _numbers(base)
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for idea in axes.ideas:
        after = _numbers(measure.shapes(frozenset({idea.name})))
        for pattern, places in before.items():
            if pattern not in after:
                continue
            for position, (old, new) in enumerate(zip(places, after[pattern], strict=True)):
                if len(new) == 2 * len(old) and len(old) == idea.size:
                    found[pattern].append((position, idea.name))
    return {pattern: tuple(places) for pattern, places in found.items()}


def counts_names(measure: Measure, name: str, base: Mapping[str, object]) -> bool:
    """Whether doubling an axis changes the set of names in another way than by counting."""
    doubled = measure.shapes(frozenset({name}))
    return not set(base) <= set(doubled)


def _movers(measure: Measure, axes: Axes, base: Mapping[str, tuple[int, ...]]) -> dict[str, list[set[str]]]:
    movers: dict[str, list[set[str]]] = {name: [set() for _ in shape] for name, shape in base.items()}
    for idea in axes.ideas:
        doubled = measure.shapes(frozenset({idea.name}))
        for name, shape in base.items():
            if len(doubled.get(name, ())) != len(shape):
                raise InferError(
                    f"`{name}` is gone or has other dimensions when `{idea.key}` is doubled",
                    axes=frozenset({idea.name}),
                )
            for dim, (old, new) in enumerate(zip(shape, doubled[name], strict=True)):
                if old != new:
                    movers[name][dim].add(idea.name)
    return movers


def _polynomial(measure: Measure, axes: Axes, name: str, dim: int, movers: set[str]) -> Polynomial:
    try:
        return polynomial(lambda doubled: measure.shapes(doubled)[name][dim], movers, axes.units)
    except ValueError as error:
        raise InferError(
            f"dimension {dim} of `{name}` is no sum of products of {sorted(movers)}: {error}", axes=frozenset(movers)
        ) from error


# Kinds ---------------------------------------------------------------------------------------------


def _kind(name: str, modules: Mapping[str, nn.Module]) -> str:
    owner, _, leaf = name.rpartition(".")
    module = modules.get(owner)
    if module is None:
        # Names on disk that the memory does not have: a matrix is taken for a linear layer's.
        return "Linear?" if leaf == "weight" else "Parameter"
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


def _is_inner(name: str) -> str:
    """Where a tensor of attention stands: `in` before the scores, `out` behind them, else nothing."""
    last = module_of(name)
    if not re.search(r"att|self|mixer|mixing", name.rpartition(".")[0].lower()):
        return ""
    if INNER_NORM.fullmatch(last):
        return "norm"
    if INNER.fullmatch(last):
        return "in"
    return "" if "norm" in last.lower() or last == "ln" else "out"


def _contractions(kind: str, dims: Sequence[Dimension]) -> Iterator[frozenset[int]]:
    movable = [position for position, dim in enumerate(dims) if dim.axes]
    if kind in ("Linear", "Linear?") and len(dims) == 2:
        first = 1
    elif kind == "Conv1D" and len(dims) >= 2:
        first = 0
    elif kind == "Conv" and len(dims) >= 2:
        first = 1
    elif len(dims) >= 3:
        first = _input_of_experts(dims)
    else:
        first = -1
    chosen = frozenset({first} if first in movable else ())
    yield chosen
    for position in reversed(movable):
        if frozenset({position}) != chosen:
            yield frozenset({position})
    if chosen:
        yield frozenset()
    for pair in itertools.combinations(movable, 2):
        yield frozenset(pair)


def _input_of_experts(dims: Sequence[Dimension]) -> int:
    """Of three dimensions, the one that experts sum over: where the other has a multiple, it is the output."""
    last = range(len(dims) - 2, len(dims))
    multiples = [position for position in last if any(m.count > 1 for m in dims[position].polynomial)]
    if len(multiples) == 1:
        return next(position for position in last if position not in multiples)
    return len(dims) - 1


# Forms ---------------------------------------------------------------------------------------------

_ORDER = ("experts", "kv", "ng", "lkv", "h", "g", "mh", "lv", "ffn", "d", "p", "dv", "ldk", "ldv", "nope", "rope", "n")


def _rank(axis: str | int) -> tuple[int, str]:
    return (_ORDER.index(axis) if axis in _ORDER else len(_ORDER), str(axis))


def _dimension(value: Polynomial, axes: Axes, kind: str, inner: str, position: int, rank: int) -> Dimension:
    names: set[str] = set()
    for monomial in value:
        names |= set(monomial.axes)
    if not names:
        return Dimension(value, (Form(),), frozenset())
    expanded = list(_forms(value, axes))
    aliased = _with_alias(value, axes)
    if aliased is None:
        return Dimension(value, tuple(expanded), frozenset(names))
    names |= set(axes.aliases)
    short = list(_forms(aliased, axes))
    output = 1 if kind == "Conv1D" else 0
    heads_first = (
        (inner == "in" and (rank == 1 or position == output))
        or (inner == "out" and rank == 2 and position != output)
        or inner == "norm"
    )
    forms = [*expanded[:3], *short, *expanded[3:]] if heads_first else [*short[:2], *expanded, *short[2:]]
    return Dimension(value, tuple(forms), frozenset(names))


def _with_alias(value: Polynomial, axes: Axes) -> Polynomial | None:
    """The polynomial with products that the config derives an axis from written as that axis."""
    changed = False
    monomials = []
    for monomial in value:
        for alias, product in axes.aliases.items():
            if set(product) <= set(monomial.axes):
                rest = tuple(axis for axis in monomial.axes if axis not in product)
                monomials.append(Monomial((alias, *rest), monomial.count))
                changed = True
                break
        else:
            monomials.append(monomial)
    return tuple(monomials) if changed else None


def _forms(value: Polynomial, axes: Axes) -> Iterator[Form]:
    """Ways to lay out a sum of products, the usual ones first."""
    pieces = _pieces(value, axes)
    first = pieces[0].items
    yield Form(tuple(pieces))
    if len(pieces) == 1:
        yield from (Form((Piece(items),)) for items in itertools.permutations(first) if items != first)
        return
    if len(set(pieces)) == 1:
        yield Form((Piece((*first, len(pieces))),))
    prefixes = [first[:cut] for cut in range(1, len(first)) if _share(pieces, first[:cut])]
    inside = [[Piece(piece.items[len(prefix) :]) for piece in pieces] for prefix in prefixes]
    yield from (Form(tuple(some), prefix) for prefix, some in zip(prefixes, inside, strict=True))
    yield from (Form(permuted) for permuted in _permutations(pieces))
    for prefix, some in zip(prefixes, inside, strict=True):
        yield from (Form(permuted, prefix) for permuted in _permutations(some))


def _pieces(value: Polynomial, axes: Axes) -> list[Piece]:
    """One piece for each product, the largest first; many alike become one with their count in it."""
    pieces: list[Piece] = []
    count = sum(monomial.count if monomial.axes else 1 for monomial in value)
    for monomial in value:
        items: tuple[str | int, ...] = tuple(sorted(monomial.axes, key=_rank))
        if not items:
            pieces.append(Piece((monomial.count,)))
        elif count > _MAX_SEGMENTS:
            pieces.append(Piece((*items, monomial.count) if monomial.count > 1 else items))
        else:
            pieces += [Piece(items)] * monomial.count
    sizes = {**axes.units}
    for alias, product in axes.aliases.items():
        sizes[alias] = math.prod(axes.units[name] for name in product)
    return sorted(pieces, key=lambda piece: -math.prod(sizes[i] if isinstance(i, str) else i for i in piece.items))


def _share(pieces: Sequence[Piece], prefix: tuple[str | int, ...]) -> bool:
    return all(piece.items[: len(prefix)] == prefix and len(piece.items) > len(prefix) for piece in pieces)


def _permutations(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, ...]]:
    """Other orders, each once."""
    seen = {tuple(pieces)}
    for permuted in itertools.islice(itertools.permutations(pieces), 720):
        if permuted not in seen and len(seen) < _MAX_PERMUTATIONS:
            seen.add(permuted)
            yield permuted
