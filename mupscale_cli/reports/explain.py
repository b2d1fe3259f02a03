"""Explain a tensor in words: its dimensions, the formulas and values of c and m, their effect on training. No torch.

The formulas follow from the recipe's layout, axis by axis. Their values equal the plan's, which come from the copy
maps (page `theory`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

from mupscale_cli.architecture.layouts import AxisRef, Concatenation, Dim, Fixed, Layout, Product, parse_layout
from mupscale_cli.architecture.patterns import Alternatives, NameAxis, Pattern, Prefix
from mupscale_cli.architecture.types import Recipe, TensorRule
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.rules.powers import UNCHANGED, Powers, Ratios
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.dims import power_scale
from mupscale_cli.reports.formulas import (
    COUNT,
    NORMS,
    ONE,
    RATIO,
    Monomial,
    Part,
    distinct,
    isometric,
    monomial_of,
    parts_of,
)
from mupscale_cli.text import listed, number_text, starred

_MAX_KINDS = 4  # kinds of tensors to explain at once


@dataclass(frozen=True, slots=True)
class Item:
    """An axis, a fixed size or a segment of a dimension.

    Attributes:
        depth: nesting depth in segments.
        what: name of the axis, the fixed size, or `part N`.
        size: number of units before widening, None if unknown.
        factor: factor of the axis, 1 if it is not widened; None if unknown.
        words: description of the axis and of its copies.
    """

    depth: int
    what: str
    size: int | None
    factor: int | None
    words: str

    def as_record(self) -> dict[str, Any]:
        """Return the item as `--json` prints it."""
        return {"what": self.what, "size": self.size, "factor": self.factor, "words": self.words}


@dataclass(frozen=True)
class Explanation:
    """How a tensor, or all tensors of a kind, are widened.

    Attributes:
        names: names of the wide tensors, or the pattern of a rule.
        rule: pattern of the rule that they match.
        layout: layout in the recipe; `keep` copies the tensor, `omit` drops it.
        when: condition under which the recipe chooses this layout, None if it has no alternative.
        shapes: shapes before and after, None without a checkpoint.
        dtype: dtype of the narrow tensor, None without a checkpoint.
        dims: items of each dimension.
        parts: formulas of c and m.
        factors: factors of the axes; None if unknown.
        bare: axes that a bare `--factor` widens.
        remarks: clauses on everything else that happens to the tensor, and why.
        further: values of what formulas contain in addition to copies: size ratios, and `NORMS`.
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
    further: Mapping[str, float | Fraction] = field(default_factory=dict)

    @property
    def is_widened(self) -> bool:
        """Return whether an axis of the tensor grows, or may grow if the factors are unknown."""
        powers = (name for part in self.parts for name in (*part.m.powers, *part.c.powers))
        return any(self.factors is None or name.startswith(COUNT) or self.factors.get(name, 1) > 1 for name in powers)

    def scales(self, part: Part) -> tuple[float, float] | None:
        """Return c and m of a part; None if the factors are unknown."""
        return None if self.values is None else (part.c.value(self.values), part.m.value(self.values))

    @property
    def values(self) -> Mapping[str, int | float | Fraction] | None:
        """Values of everything that formulas contain; None if the factors are unknown."""
        return None if self.factors is None else {**self.factors, **self.further}

    def consequences(self, part: Part) -> tuple[Consequence, ...]:
        """Return the hyperparameter multipliers of a part, for each optimizer that accepts such a tensor."""
        rules = [rule for rule in OPTIMIZERS.values() if not rule.matrices_only or len(self.dims) == 2]
        ratios = UNCHANGED if self.shapes is None else Ratios.of(*self.shapes)
        return tuple(_consequences(rules, part, self.values, ratios))

    def bare_factor(self, part: Part) -> tuple[str, str]:
        """Return formulas in K of c and m with `--factor K`."""

        def formula(monomial: Monomial) -> str:
            power = sum((monomial.powers.get(name, Fraction(0)) for name in self.bare), Fraction(0))
            return str(Monomial({"K": power} if power else {})).replace("k(K)", "K")

        return formula(part.c), formula(part.m)

    def as_record(self) -> dict[str, Any]:
        """Return the explanation as `--json` prints it."""
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
            "hyperparameters": [consequence.as_record() for consequence in self.consequences(part)],
        }


@dataclass(frozen=True)
class Consequence:
    """Multipliers of a tensor's hyperparameters under some optimizers.

    Attributes:
        rules: rules of the optimizers that share these multipliers.
        formulas: formulas of the multipliers of `lr`, `eps` and `weight_decay`, if the optimizer has them.
        values: values of the formulas, None if the factors are unknown.
    """

    rules: tuple[OptimizerRule, ...]
    formulas: Mapping[str, str]
    values: Mapping[str, float] | None

    @property
    def optimizers(self) -> tuple[str, ...]:
        return tuple(rule.name for rule in self.rules)

    def as_record(self) -> dict[str, Any]:
        """Return the multipliers as `--json` prints them."""
        return {
            "optimizers": list(self.optimizers),
            **{
                key: {"formula": text, "value": self.values and self.values[key]} for key, text in self.formulas.items()
            },
        }


def _consequences(
    known: Iterable[OptimizerRule],
    part: Part,
    factors: Mapping[str, int | float | Fraction] | None,
    ratios: Ratios,
) -> Iterator[Consequence]:
    """Yield the hyperparameter multipliers of a part, once for optimizers that share them."""
    by_formulas: dict[tuple[tuple[str, Powers], ...], list[OptimizerRule]] = {}
    for rule in known:
        by_formulas.setdefault(tuple(rule.formulas(rule.decoupled).items()), []).append(rule)
    for formulas, rules in by_formulas.items():
        values = None
        if factors is not None:
            c, m = part.c.value(factors), part.m.value(factors)
            values = {key: formula(c, m, ratios) for key, formula in formulas}
        yield Consequence(tuple(rules), {key: str(formula) for key, formula in formulas}, values)


# Lookup ---------------------------------------------------------------------------------------


def explain_tensor(plan: Plan, name: str, factors: Mapping[str, int] | None = None) -> tuple[Explanation, ...]:
    """Explain the tensors of a plan that a name means; equal explanations are merged.

    Args:
        plan: plan with or without a widening.
        name: name of a tensor, its end, or a part between dots; `*` stands for a number.
        factors: factors of an earlier widening, if the plan itself widens nothing.

    Raises:
        PlanError: the name means no tensor, or too many kinds of tensors.
    """
    by_name = {tensor.target.name: tensor for tensor in plan.tensors}
    kinds: dict[object, list[TensorPlan]] = {}
    for tensor in map(by_name.__getitem__, matching_names(name, by_name)):
        key = (tensor.rule, tensor.layout, tensor.source.shape, tensor.target.shape, tensor.parts)
        kinds.setdefault(key, []).append(tensor)
    _check_count(name, [members[0].target.name for members in kinds.values()])
    known = plan.factors or factors
    return tuple(_explain_members(plan, members, known) for members in kinds.values())


def explain_rule(recipe: Recipe, name: str) -> tuple[Explanation, ...]:
    """Explain the rules of a recipe that a tensor's name means, with one explanation per alternative.

    Args:
        recipe: the recipe.
        name: name of a tensor, its end, or a part between dots.

    Raises:
        PlanError: the name means no rule, or too many.
    """
    by_sample = {sample: rule for rule in recipe.tensors for sample in _sample_names(rule.pattern, recipe)}
    rules = {id(rule): rule for rule in map(by_sample.__getitem__, matching_names(name, by_sample))}.values()
    _check_count(name, [rule.pattern.text for rule in rules])
    return tuple(explanation for rule in rules for explanation in _explain_choices(recipe, rule))


def _check_count(name: str, kinds: Sequence[str]) -> None:
    if len(kinds) > _MAX_KINDS:
        raise PlanError(
            f"`--tensor {name}` matches {len(kinds)} kinds of tensors",
            hint=f"give more of the name: {listed(kinds[:6])}, ...",
        )


def matching_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that a text matches: an equal name, or else those that contain it between dots.

    Numbers match any number if the text as written matches nothing. A text that matches a weight and its bias means
    the weight.

    Raises:
        PlanError: no name matches.
    """
    names = list(known)
    if name in names:
        return [name]
    for text, of in ((name, lambda each: each), (starred(name), starred)):
        wanted = ".".join("[^.]+" if part == "*" else re.escape(part) for part in text.split("."))
        regex = re.compile(rf"(?:^|.*\.){wanted}(?:\.(.*))?$")
        rests = {each: match.group(1) for each in names if (match := regex.match(of(each)))}
        for wanted_rest in (None, "weight"):
            if exact := [each for each, rest in rests.items() if rest == wanted_rest]:
                return exact
        if rests:
            return list(rests)
    lasts = {part: each for each in names for part in (each, each.removesuffix(".weight").rpartition(".")[2])}
    near = get_close_matches(name, lasts, n=3)
    raise PlanError(
        f"no tensor is named `{name}`",
        hint=f"did you mean {' or '.join(f'`{each}`' for each in near)}?"
        if near
        else "give a name from the tree or its end, such as `q_proj.weight`",
    )


def _sample_names(pattern: Pattern, recipe: Recipe) -> Iterator[str]:
    """Yield names that a pattern matches, with `*` for numbers."""
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


# Construction ---------------------------------------------------------------------------------


def _explain_members(plan: Plan, members: Sequence[TensorPlan], factors: Mapping[str, int] | None) -> Explanation:
    tensor = members[0]
    rule = next((rule for rule in plan.recipe.tensors if rule.pattern.text == tensor.rule), None)
    is_wide = not plan.factors and factors is not None
    past = ("already widened: the sizes are current, the factors are those of the widening",) if is_wide else ()
    choices = rule.choices if rule else ()
    condition = next((choice.condition for choice in choices if choice.text.value == tensor.layout), None)
    sizes = {axis.name: axis.size for axis in plan.axes}
    layout = None if tensor.layout == "keep" else parse_layout(tensor.layout)
    name_axes = rule.pattern.axes if rule else ()
    parts = _parts_for(plan.recipe, layout, name_axes)
    further: dict[str, float | Fraction] = {}
    if layout is not None and plan.factors:
        axes = {axis.name: axis for axis in plan.axes}
        further = {f"{RATIO}{name}": axis.ratio for name, axis in axes.items()}
        further[NORMS] = tensor.scale / power_scale(layout.powers, axes)
        for axis in plan.axes:
            if axis.isometric:
                further[f"{COUNT}{axis.name}"] = axis.factor
                parts = distinct(isometric(part, axis.name, is_gain=layout.norm is not None) for part in parts)
    if factors is not None:
        grown = {axis.name for axis in plan.axes if factors.get(axis.name, 1) > 1 or axis.ratio > 1}
        unchanged = [f"{RATIO}{axis.name}" for axis in plan.axes if axis.name not in grown]
        parts = distinct(part.without(unchanged) for part in parts)
    if further.get(NORMS, 1.0) != 1.0:
        scale = Part(Monomial({NORMS: Fraction(1)}), ONE.m, ONE.pieces)
        parts = tuple(part * scale for part in parts)
    return Explanation(
        names=tuple(member.target.name for member in members),
        rule=tensor.rule,
        layout=tensor.layout,
        when=condition.value if condition else None,
        shapes=(tensor.source.shape, tensor.target.shape),
        dtype=tensor.source.dtype,
        dims=_dims(plan.recipe, layout, sizes, factors, tensor.source.shape),
        parts=parts,
        factors=factors,
        bare=plan.recipe.widen,
        remarks=(*past, *_remarks(layout, name_axes), *_plan_remarks(plan, tensor, parts), *_norm_remarks(further)),
        further=further,
    )


def _explain_choices(recipe: Recipe, rule: TensorRule) -> Iterator[Explanation]:
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
        return (ONE,)
    never_copied = [*recipe.fixed, *(axis.name for axis in recipe.axes if axis.is_spread)]
    return distinct(part.without(never_copied) for part in parts_of(layout, name_axes))


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
                words = [about[dim.name], _sum_text(dim, factor)]
                words.append(f"never widened: {recipe.fixed[dim.name]}" if dim.name in recipe.fixed else "")
                yield Item(depth, dim.name, sizes.get(dim.name), factor, "; ".join(filter(None, words)))
            case Product():
                for item in dim.items:
                    yield from items(item, depth, None)
            case Concatenation():
                for number, segment in enumerate(dim.segments, 1):
                    scale = f"times {monomial_of(segment.powers)}" if segment.powers else ""
                    yield Item(depth, f"part {number}", None, None, scale)
                    yield from items(segment.dim, depth + 1, None)

    known: Sequence[int | None] = shape or [None] * len(layout.dims)
    return tuple(tuple(items(dim, 0, size)) for dim, size in zip(layout.dims, known, strict=True))


def _sum_text(ref: AxisRef, factor: int | None) -> str:
    """Describe how the layer sums over an axis."""
    if ref.averaged:
        return "the layer divides by the axis's size itself, so copies are not divided"
    if not ref.contracted:
        return ""
    match factor:
        case 1:
            return "summed over"
        case None:
            return "summed over, so each copy takes a share"
        case _:
            return f"summed over, so each of the {factor} copies takes a share"


def _remarks(layout: Layout | None, name_axes: Sequence[NameAxis]) -> Iterator[str]:
    if layout is None:
        return
    if layout.powers:
        yield (
            f"the recipe scales the whole tensor by {monomial_of(layout.powers)}, to compensate a width-dependent "
            "constant in the forward pass or a factor that another tensor cannot take"
        )
    if layout.offset:
        yield f"the layer uses {layout.offset} + w for the stored w, so {layout.offset} + w is scaled"
    for axis in name_axes:
        names = " ".join(axis.names)
        shared = "; the layer sums over them, so each takes a share" if axis.contracted else ""
        yield f"{names} counts tensors: widening it adds tensors{shared}"


def _norm_remarks(further: Mapping[str, float | Fraction]) -> Iterator[str]:
    if (scale := further.get(NORMS, 1.0)) != 1.0:
        yield f"{NORMS} = {number_text(float(scale))} makes up for norms that average over more units"


def _plan_remarks(plan: Plan, tensor: TensorPlan, parts: Sequence[Part]) -> Iterator[str]:
    if tensor.name_copies > 1:
        yield f"each such source tensor becomes {tensor.name_copies}; this one is a copy of `{tensor.source.name}`"
    elif tensor.fill is not None:
        yield f"every element is {tensor.fill:g}, so that the new block is the identity at first"
    elif tensor.is_new:
        yield f"in a new block; a copy of `{tensor.source.name}`"
    elif tensor.source.name != tensor.target.name and tensor.block is not None:
        yield f"called `{tensor.source.name}` in the source"
    elif tensor.source.name != tensor.target.name:
        yield f"made from `{tensor.source.name}`, which the source shares with this tensor"
    for axis in plan.axes:
        if axis.extra and any(f"n({axis.name})" in str(part.m) for part in parts):
            counts = f"{axis.factor}, and {axis.factor + 1} for the last {axis.extra} units"
            yield f"n({axis.name}) is {counts}; the values here are for {axis.factor}"
    if tensor.is_rounded:
        yield f"the scale is not exact in {tensor.target.dtype}, so each element is rounded once"
    if not plan.method.is_copying and tensor.is_changed:
        yield f"`{plan.method.name}` copies no units: new units are fresh, old ones are multiplied by {tensor.shrink:g}"
    if tensor.noise is not None:
        perturbation = tensor.noise.perturbation
        size = number_text(perturbation.size)
        if perturbation.mode == "mixed":
            yield f"mixed with noise: sqrt(1 - {size}) of the weights, sqrt({size}) of noise"
        else:
            yield f"{perturbation.mode} noise of relative size {size} is added"
