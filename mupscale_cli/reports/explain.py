"""One tensor in words: what its dimensions are, the formulas of c and m with their values, what follows. No torch.

The formulas are read off the recipe's layout, axis by axis; their values agree with the plan's, which come from the
copy maps (page `theory`).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from mupscale_cli.architecture.layouts import AxisRef, Concatenation, Dim, Fixed, Layout, Power, Product, parse_layout
from mupscale_cli.architecture.patterns import Alternatives, NameAxis, Pattern, Prefix
from mupscale_cli.architecture.types import Recipe, TensorRule
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.rules import OPTIMIZERS, OptimizerRule, Powers
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.text import listed, number_text, starred

_MAX_KINDS = 4  # that are explained at once
_Powers = dict[str, Fraction]


@dataclass(frozen=True)
class Monomial:
    """A product of powers of factors: k(embed)^-1 k(d)^-0.5.

    Attributes:
        powers: the exponent of each axis' factor.
    """

    powers: Mapping[str, Fraction]

    def __mul__(self, other: Monomial) -> Monomial:
        names = dict.fromkeys((*self.powers, *other.powers))
        return Monomial({name: self.powers.get(name, Fraction(0)) + other.powers.get(name, 0) for name in names})

    def __pow__(self, exponent: Fraction | int) -> Monomial:
        return Monomial({name: power * exponent for name, power in self.powers.items()})

    def without(self, names: Iterable[str]) -> Monomial:
        """The same where some factors are 1."""
        dropped = frozenset(names)
        return Monomial({name: power for name, power in self.powers.items() if name not in dropped and power})

    def value(self, factors: Mapping[str, int]) -> float:
        """Its value; exact where it is a whole number or the inverse of one."""
        exact, other = Fraction(1), 1.0
        for name, power in self.powers.items():
            if power.denominator == 1:
                exact *= Fraction(factors.get(name, 1)) ** power.numerator
            else:
                other *= math.pow(factors.get(name, 1), power)
        return float(exact) * other

    def __str__(self) -> str:
        over = [_power_text(name, power) for name, power in self.powers.items() if power > 0]
        under = [_power_text(name, -power) for name, power in self.powers.items() if power < 0]
        text = " ".join(over) or "1"
        if not under:
            return text
        return f"{text} / {under[0] if len(under) == 1 else '(' + ' '.join(under) + ')'}"


def _power_text(name: str, power: Fraction) -> str:
    return f"k({name})" + ("" if power == 1 else f"^{float(power):g}")


@dataclass(frozen=True)
class Part:
    """A part of a tensor that is widened in one way.

    Attributes:
        c: what one copy of an element is multiplied by.
        m: how many copies an element has.
        pieces: into how many shares the layer's sums split an element.
    """

    c: Monomial
    m: Monomial
    pieces: Monomial

    def __mul__(self, other: Part) -> Part:
        return Part(self.c * other.c, self.m * other.m, self.pieces * other.pieces)

    def without(self, names: Sequence[str]) -> Part:
        return Part(self.c.without(names), self.m.without(names), self.pieces.without(names))

    @property
    def key(self) -> tuple[frozenset[tuple[str, Fraction]], ...]:
        return tuple(frozenset(each.powers.items()) for each in (self.c, self.m, self.pieces))


_ONE = Part(Monomial({}), Monomial({}), Monomial({}))


def parts_of(layout: Layout, name_axes: Sequence[NameAxis] = ()) -> tuple[Part, ...]:
    """Coefficient and multiplicity of each part of a tensor, as formulas in the axes' factors.

    Args:
        layout: of the tensor.
        name_axes: axes in its name.
    """
    whole = _ONE
    for axis in name_axes:
        for name in axis.names:
            whole *= _along(name, contracted=axis.contracted)
    dims = [list(_parts(dim)) for dim in layout.dims]
    scale = Part(_monomial(layout.powers), _ONE.m, _ONE.pieces)
    found: dict[object, Part] = {}
    for combination in itertools.product(*dims):
        part = math.prod(combination, start=whole * scale)
        found.setdefault(part.key, part)
    return tuple(found.values())


def _parts(dim: Dim) -> Iterator[Part]:
    match dim:
        case Fixed():
            yield _ONE
        case AxisRef():
            yield _along(dim.name, contracted=dim.contracted and not dim.averaged)
        case Product():
            for combination in itertools.product(*map(list, map(_parts, dim.items))):
                yield math.prod(combination, start=_ONE)
        case Concatenation():
            for segment in dim.segments:
                scale = Part(_monomial(segment.powers), _ONE.m, _ONE.pieces)
                yield from (part * scale for part in _parts(segment.dim))


def _along(name: str, *, contracted: bool) -> Part:
    one = Monomial({name: Fraction(1)})
    return Part(one**-1, one, one) if contracted else Part(_ONE.c, one, _ONE.pieces)


def _monomial(powers: Iterable[Power]) -> Monomial:
    return math.prod((Monomial({power.axis: power.exponent}) for power in powers), start=Monomial({}))


# What is explained ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """An axis, or a fixed size, inside of a dimension.

    Attributes:
        depth: how deep it stands in products and segments.
        what: its name, or what stands in its place.
        size: units before, None where nothing tells.
        factor: by which it is widened, 1 if not; None where that is open.
        words: what it is, and what happens to its copies.
    """

    depth: int
    what: str
    size: int | None
    factor: int | None
    words: str

    def as_record(self) -> dict[str, Any]:
        """The item as `--json` shows it."""
        return {"what": self.what, "size": self.size, "factor": self.factor, "words": self.words}


@dataclass(frozen=True)
class Explanation:
    """What happens to a tensor, or to all of a kind.

    Attributes:
        names: of the wide tensors, or the pattern of a rule.
        rule: the pattern that they follow, with the file.
        layout: as written; `keep` for what is copied, `omit` for what is left out.
        when: the condition of a recipe under which it is so.
        shapes: before and after, None without a checkpoint.
        dtype: None without a checkpoint.
        dims: what each dimension is made of.
        parts: formulas of c and m.
        factors: of the axes; None where they are open.
        bare: the axes that a bare `--factor` widens.
        remarks: sentences on what else is done, and why.
    """

    names: tuple[str, ...]
    rule: str
    layout: str
    when: str | None
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None
    dtype: str | None
    dims: tuple[tuple[Item, ...], ...]
    parts: tuple[Part, ...]
    factors: Mapping[str, int] | None
    bare: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def is_widened(self) -> bool:
        """Whether some axis of it can grow, or does."""
        powers = (name for part in self.parts for name in (*part.m.powers, *part.c.powers))
        return any(self.factors is None or self.factors.get(name, 1) > 1 for name in powers)

    def scales(self, part: Part) -> tuple[float, float] | None:
        """The c and m of a part, None where the factors are open."""
        return None if self.factors is None else (part.c.value(self.factors), part.m.value(self.factors))

    def consequences(self, part: Part) -> tuple[Consequence, ...]:
        """What a part's c and m make of the hyperparameters, for the optimizers that take such a tensor."""
        rules = [rule for rule in OPTIMIZERS.values() if not rule.matrices_only or len(self.dims) == 2]
        return tuple(_consequences(rules, part, self.factors))

    def bare_factor(self, part: Part) -> tuple[str, str]:
        """The c and m with `--factor K`, in K."""
        found = []
        for each in (part.c, part.m):
            power = sum((each.powers.get(name, Fraction(0)) for name in self.bare), Fraction(0))
            found.append(str(Monomial({"K": power} if power else {})).replace("k(K)", "K"))
        return found[0], found[1]

    def as_record(self) -> dict[str, Any]:
        """The explanation as `--json` shows it."""
        return {
            "names": list(self.names),
            "rule": self.rule,
            "layout": self.layout,
            "when": self.when,
            "dtype": self.dtype,
            "shape": None if self.shapes is None else list(self.shapes[0]),
            "wide_shape": None if self.shapes is None else list(self.shapes[1]),
            "dims": [[item.as_record() for item in dim] for dim in self.dims],
            "factors": None if self.factors is None else dict(self.factors),
            "parts": [self._part_record(part) for part in self.parts],
            "remarks": list(self.remarks),
        }

    def _part_record(self, part: Part) -> dict[str, Any]:
        scales = self.scales(part)
        return {
            "coefficient": {"formula": str(part.c), "value": scales and scales[0]},
            "multiplicity": {"formula": str(part.m), "value": scales and scales[1]},
            "hyperparameters": [found.as_record() for found in self.consequences(part)],
        }


@dataclass(frozen=True)
class Consequence:
    """By what the hyperparameters of a tensor are multiplied under some optimizers.

    Attributes:
        rules: of the optimizers for which it is the same.
        formulas: of `lr`, `eps`, `weight_decay`, as far as the optimizer has them.
        values: the same as numbers, None where the factors are open.
    """

    rules: tuple[OptimizerRule, ...]
    formulas: Mapping[str, str]
    values: Mapping[str, float] | None

    @property
    def optimizers(self) -> tuple[str, ...]:
        return tuple(rule.name for rule in self.rules)

    def as_record(self) -> dict[str, Any]:
        """As `--json` shows it."""
        return {
            "optimizers": list(self.optimizers),
            **{
                key: {"formula": text, "value": self.values and self.values[key]} for key, text in self.formulas.items()
            },
        }


def _consequences(
    known: Iterable[OptimizerRule], part: Part, factors: Mapping[str, int] | None
) -> Iterator[Consequence]:
    """What c and m of a part make of the hyperparameters, once for optimizers that agree."""
    alike: dict[tuple[tuple[str, Powers], ...], list[OptimizerRule]] = {}
    for rule in known:
        alike.setdefault(tuple(rule.formulas(rule.decoupled).items()), []).append(rule)
    for formulas, rules in alike.items():
        values = None
        if factors is not None:
            c, m = part.c.value(factors), part.m.value(factors)
            values = {key: formula(c, m) for key, formula in formulas}
        yield Consequence(tuple(rules), {key: str(formula) for key, formula in formulas}, values)


# Finding what is meant ------------------------------------------------------------------------


def explain_tensor(plan: Plan, name: str, factors: Mapping[str, int] | None = None) -> tuple[Explanation, ...]:
    """Explain the tensors of a plan that a name means, one explanation for those that are alike.

    Args:
        plan: of a widening, or of none.
        name: a tensor's name, the end of one, or a part of it between dots; numbers may be `*`.
        factors: of the axes, where the plan widens none but they are known.

    Raises:
        PlanError: no tensor is meant, or too many different ones.
    """
    by_name = {tensor.target.name: tensor for tensor in plan.tensors}
    found = meant(name, by_name)
    kinds: dict[object, list[TensorPlan]] = {}
    for tensor in (by_name[each] for each in found):
        key = (tensor.rule, tensor.layout, tensor.source.shape, tensor.target.shape, tensor.parts)
        kinds.setdefault(key, []).append(tensor)
    _check_count(name, [members[0].target.name for members in kinds.values()])
    known = plan.factors or factors
    return tuple(_explained(plan, members, known) for members in kinds.values())


def explain_rule(recipe: Recipe, name: str) -> tuple[Explanation, ...]:
    """Explain the rules of a recipe that a tensor's name means, one explanation for each alternative.

    Args:
        recipe: which.
        name: a tensor's name, the end of one, or a part of it between dots.

    Raises:
        PlanError: no rule is meant, or too many.
    """
    rules = {sample: rule for rule in recipe.tensors for sample in _samples(rule.pattern, recipe)}
    found = list({id(rules[sample]): rules[sample] for sample in meant(name, rules)}.values())
    _check_count(name, [rule.pattern.text for rule in found])
    return tuple(each for rule in found for each in _explained_rule(recipe, rule))


def _check_count(name: str, found: Sequence[str]) -> None:
    if len(found) > _MAX_KINDS:
        raise PlanError(
            f"`--tensor {name}` means {len(found)} kinds of tensors",
            hint=f"say more of the name: {listed(found[:6])}, ...",
        )


def meant(name: str, known: Iterable[str]) -> list[str]:
    """The names that a text means: that very one, else those that it is a part of between dots.

    Of a weight and its bias the weight is meant, unless the text says which.

    Raises:
        PlanError: none is.
    """
    names = list(known)
    if name in names:
        return [name]
    for text, of in ((name, lambda each: each), (starred(name), starred)):
        wanted = ".".join("[^.]+" if part == "*" else re.escape(part) for part in text.split("."))
        regex = re.compile(rf"(?:^|.*\.){wanted}(?:\.(.*))?$")
        found = {each: match.group(1) for each in names if (match := regex.match(of(each)))}
        for rest in (None, "weight"):
            if exact := [each for each, after in found.items() if after == rest]:
                return exact
        if found:
            return list(found)
    lasts = {part: each for each in names for part in (each, each.removesuffix(".weight").rpartition(".")[2])}
    near = get_close_matches(name, lasts, n=3)
    raise PlanError(
        f"no tensor is called `{name}`",
        hint=f"did you mean {' or '.join(f'`{each}`' for each in near)}?"
        if near
        else "give a name as the tree shows it, or the end of one, such as `q_proj.weight`",
    )


def _samples(pattern: Pattern, recipe: Recipe) -> Iterator[str]:
    """Names that a pattern matches, with `*` where numbers stand."""
    for prefixes in recipe.prefixes:
        choices: list[tuple[str, ...]] = []
        for part in pattern.parts:
            match part:
                case str():
                    choices.append((part,))
                case Alternatives():
                    choices.append(part.texts)
                case Prefix():
                    choices.append((prefixes[part.word],))
                case _:
                    choices.append(("*",))
        yield from map("".join, itertools.product(*choices))


# Explaining -----------------------------------------------------------------------------------


def _explained(plan: Plan, members: Sequence[TensorPlan], factors: Mapping[str, int] | None) -> Explanation:
    tensor = members[0]
    rule = next((rule for rule in plan.recipe.tensors if rule.pattern.text == tensor.rule), None)
    past = (
        () if plan.factors or factors is None else ("it was widened already: sizes are those of now, factors of then",)
    )
    choices = rule.choices if rule else ()
    condition = next((choice.condition for choice in choices if choice.text.value == tensor.layout), None)
    sizes = {axis.name: axis.size for axis in plan.axes}
    layout = None if tensor.layout == "keep" else parse_layout(tensor.layout)
    name_axes = rule.pattern.axes if rule else ()
    return Explanation(
        names=tuple(member.target.name for member in members),
        rule=tensor.rule,
        layout=tensor.layout,
        when=condition.value if condition else None,
        shapes=(tensor.source.shape, tensor.target.shape),
        dtype=tensor.source.dtype,
        dims=_dims(plan.recipe, layout, sizes, factors, tensor.source.shape),
        parts=_parts_for(plan.recipe, layout, name_axes),
        factors=factors,
        bare=plan.recipe.widen,
        remarks=(*past, *_remarks(layout, name_axes), *_plan_remarks(plan, tensor)),
    )


def _explained_rule(recipe: Recipe, rule: TensorRule) -> Iterator[Explanation]:
    for choice in rule.choices:
        layout = choice.value if isinstance(choice.value, Layout) else None
        otherwise = "otherwise" if len(rule.choices) > 1 else None
        yield Explanation(
            names=(rule.pattern.text,),
            rule=rule.pattern.text,
            layout=choice.text.value,
            when=choice.condition.value if choice.condition else otherwise,
            shapes=None,
            dtype=None,
            dims=_dims(recipe, layout, {}, None, None),
            parts=_parts_for(recipe, layout, rule.pattern.axes),
            factors=None,
            bare=recipe.widen,
            remarks=tuple(_remarks(layout, rule.pattern.axes)),
        )


def _parts_for(recipe: Recipe, layout: Layout | None, name_axes: Sequence[NameAxis]) -> tuple[Part, ...]:
    if layout is None:
        return (_ONE,)
    fixed = tuple(recipe.fixed)
    return tuple({part.key: part for part in (p.without(fixed) for p in parts_of(layout, name_axes))}.values())


def _dims(
    recipe: Recipe,
    layout: Layout | None,
    sizes: Mapping[str, int | None],
    factors: Mapping[str, int] | None,
    shape: Sequence[int] | None,
) -> tuple[tuple[Item, ...], ...]:
    if layout is None:
        return ()
    about = {axis.name: axis.about for axis in recipe.axes}

    def items(dim: Dim, depth: int, size: int | None) -> Iterator[Item]:
        match dim:
            case Fixed():
                yield Item(depth, "." if dim.size is None else str(dim.size), dim.size or size, 1, "never widened")
            case AxisRef():
                factor = 1 if dim.name in recipe.fixed else None if factors is None else factors.get(dim.name, 1)
                words = [about[dim.name], _in_sum(dim, factor)]
                words.append(f"never widened: {recipe.fixed[dim.name]}" if dim.name in recipe.fixed else "")
                yield Item(depth, dim.name, sizes.get(dim.name), factor, "; ".join(filter(None, words)))
            case Product():
                for item in dim.items:
                    yield from items(item, depth, None)
            case Concatenation():
                for number, segment in enumerate(dim.segments, 1):
                    scale = f"times {_monomial(segment.powers)}" if segment.powers else ""
                    yield Item(depth, f"part {number}", None, None, scale)
                    yield from items(segment.dim, depth + 1, None)

    known: Sequence[int | None] = shape or [None] * len(layout.dims)
    return tuple(tuple(items(dim, 0, size)) for dim, size in zip(layout.dims, known, strict=True))


def _in_sum(ref: AxisRef, factor: int | None) -> str:
    if ref.averaged:
        return "the layer divides by its size itself, so copies stay whole"
    if not ref.contracted:
        return ""
    return "summed over" + (
        ""
        if factor == 1
        else ", so copies take shares"
        if factor is None
        else f", so each of the {factor} copies takes a share"
    )


def _remarks(layout: Layout | None, name_axes: Sequence[NameAxis]) -> Iterator[str]:
    if layout is None:
        return
    if layout.powers:
        yield (
            f"the recipe scales the whole tensor by {_monomial(layout.powers)}: for a constant of the width in the "
            "forward pass, or for a factor that another tensor cannot take"
        )
    if layout.offset:
        yield f"the layer uses {layout.offset} + w of the stored w, and {layout.offset} + w is what is scaled"
    for axis in name_axes:
        names = " ".join(axis.names)
        shared = ", and the layer sums over them, so each takes a share" if axis.contracted else ""
        yield f"{names} counts tensors: widening it makes more of them{shared}"


def _plan_remarks(plan: Plan, tensor: TensorPlan) -> Iterator[str]:
    if tensor.name_copies > 1:
        yield f"each such tensor of the source becomes {tensor.name_copies}, this one is of `{tensor.source.name}`"
    elif tensor.source.name != tensor.target.name:
        yield f"made from `{tensor.source.name}`, which the source shares"
    if tensor.is_rounded:
        yield f"that scale is not exact in {tensor.target.dtype}, so each element is rounded once"
    if not plan.method.is_copying and tensor.is_changed:
        yield f"`{plan.method.name}` copies nothing: new units are fresh, old ones multiplied by {tensor.shrink:g}"
    if tensor.noise is not None:
        made = tensor.noise.perturbation
        yield f"{made.mode} noise of relative size {number_text(made.size)} is added"
