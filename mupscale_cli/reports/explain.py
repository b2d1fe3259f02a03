"""Explain a tensor in words: its dimensions, the formulas and values of c and m, their effect on training. No torch.

The formulas follow from the recipe's layout, axis by axis. Their values equal the plan's, which come from the copy
maps (page `theory`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from mupscale_cli.architecture.layouts import AxisRef, Concatenation, Dim, Fixed, Layout, Product, parse_layout
from mupscale_cli.architecture.patterns import NameAxis
from mupscale_cli.architecture.types import Recipe, TensorRule
from mupscale_cli.plan import Plan, TensorPlan
from mupscale_cli.plan.dims import power_scale
from mupscale_cli.reports.explanation import Explanation, Item
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
from mupscale_cli.reports.named_tensors import check_count, matching_names, sample_names
from mupscale_cli.text import number_text


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
    check_count(name, [members[0].target.name for members in kinds.values()])
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
    by_sample = {sample: rule for rule in recipe.tensors for sample in sample_names(rule.pattern, recipe)}
    rules = {id(rule): rule for rule in map(by_sample.__getitem__, matching_names(name, by_sample))}.values()
    check_count(name, [rule.pattern.text for rule in rules])
    return tuple(explanation for rule in rules for explanation in _explain_choices(recipe, rule))


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
