"""Print explanations of tensors: dimensions, formulas with their values, and their effect on training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from mupscale_cli.cli import output
from mupscale_cli.cli.completion import complete_tensor
from mupscale_cli.cli.output import number_text

if TYPE_CHECKING:
    from mupscale_cli.architecture.types import Recipe
    from mupscale_cli.plan import Plan
    from mupscale_cli.reports.explanation import Consequence, Explanation
    from mupscale_cli.reports.formulas import Part

TensorName = Annotated[
    str | None,
    typer.Option(
        "--tensor",
        "-t",
        metavar="NAME",
        rich_help_panel="Output",
        help="Explain one tensor in words: its dimensions, the formulas and values of its coefficient and "
        "multiplicity, and their effect on learning rate, eps and weight decay. The end of a name is enough: q_proj.",
        autocompletion=complete_tensor,
    ),
]
_HEADINGS = {"lr": "lr", "eps": "eps", "weight_decay": "weight decay"}


def show_tensor(plan: Plan, name: str, factors: Mapping[str, int] | None = None, *, as_json: bool) -> None:
    """Explain the tensors of a plan that a name means.

    Args:
        plan: plan with or without a widening.
        name: name of a tensor, or its end.
        factors: factors of an earlier widening, if the plan itself widens nothing.
        as_json: whether to print one JSON document.

    Raises:
        PlanError: the name means no tensor, or too many kinds of tensors.
    """
    from mupscale_cli.reports.explain import explain_tensor

    _show(explain_tensor(plan, name, factors), plan.recipe, as_json=as_json)


def show_rule(recipe: Recipe, name: str, *, as_json: bool) -> None:
    """Explain the rules of a recipe that a tensor's name means, without factors.

    Raises:
        PlanError: the name means no rule, or too many.
    """
    from mupscale_cli.reports.explain import explain_rule

    _show(explain_rule(recipe, name), recipe, as_json=as_json)


def _show(explanations: Sequence[Explanation], recipe: Recipe, *, as_json: bool) -> None:
    if as_json:
        records = [explanation.as_record() for explanation in explanations]
        output.print_document("explain", {"recipe": recipe.name, "tensors": records})
        return
    console = output.stdout()
    for number, explanation in enumerate(explanations):
        if number:
            console.print()
        _print(console, explanation, recipe.file)


def _print(console: Console, explanation: Explanation, file: str) -> None:
    more = f", and {len(explanation.names) - 1} more like it" if len(explanation.names) > 1 else ""
    console.print(f"[bold]{escape(explanation.names[0])}[/]{more}", soft_wrap=True)
    if explanation.shapes is not None:
        before, after = ("x".join(map(str, shape)) or "scalar" for shape in explanation.shapes)
        console.print(f"{explanation.dtype}, {before if before == after else f'{before} -> {after}'}", markup=False)
    when = f", {'' if explanation.when == 'otherwise' else 'when '}{explanation.when}" if explanation.when else ""
    console.print(f"rule of {file}: {explanation.rule}: {explanation.layout}{when}", markup=False)
    if explanation.layout in ("keep", "omit"):
        console.print("copied unchanged" if explanation.layout == "keep" else "omitted", markup=False)
        return
    console.print()
    console.print(_dims_table(explanation))
    console.print()
    for remark in explanation.remarks:
        console.print(remark, markup=False)
    if not explanation.is_widened:
        console.print("copied unchanged, because none of its axes is widened", markup=False)
        return
    console.print("W' = c R(W): R repeats each element m times, and each copy is c times the element", markup=False)
    for number, part in enumerate(explanation.parts, 1):
        if len(explanation.parts) > 1:
            console.print(f"\npart {number} of {len(explanation.parts)}", style="bold")
        _print_part(console, explanation, part)
    if explanation.factors is None:
        _print_training(console, explanation, explanation.parts[0])


def _dims_table(explanation: Explanation) -> output.OpenTable:
    has_sizes, has_factors = explanation.shapes is not None, explanation.factors is not None
    columns = (*(("size",) if has_sizes else ()), *(("factor",) if has_factors else ()))
    result = output.table("dim", "axis", *columns, "description", right=columns)
    for number, items in enumerate(explanation.dims):
        for place, item in enumerate(items):
            size = "" if item.size is None else str(item.size)
            factor = "" if item.factor is None else f"x{item.factor}"
            cells = (*((size,) if has_sizes else ()), *((factor,) if has_factors else ()))
            style = "bold" if (item.factor or 1) > 1 else None
            name = "  " * item.depth + item.what
            result.add_row(str(number) if place == 0 else "", escape(name), *cells, escape(item.words), style=style)
    return result


def _print_part(console: Console, explanation: Explanation, part: Part) -> None:
    scales = explanation.scales(part)
    c, m = ("", "") if scales is None else (f" = {number_text(scales[0])}", f" = {number_text(scales[1])}")
    console.print(f"c = {part.c}{c}", markup=False)
    console.print(f"m = {part.m}{m}", markup=False)
    if scales is None:
        bare_c, bare_m = explanation.bare_factor(part)
        console.print(f"with `--factor K`: c = {bare_c}, m = {bare_m}", markup=False)
    elif (pieces := part.pieces.value(explanation.values or {})) > 1:
        console.print(
            f"the layer sums over {pieces:g} shares of each element, which add up to the element exactly",
            markup=False,
        )
    gradient = _formula_text("1/(m c)", scales and 1 / (scales[0] * scales[1]))
    square = _formula_text("1/(m c)^2", scales and (scales[0] * scales[1]) ** -2)
    clipping = _formula_text("m c^2", scales and scales[1] * scales[0] ** 2)
    console.print(
        f"\na copy's gradient is {gradient} times the element's, so Adam's exp_avg is multiplied by that and "
        f"exp_avg_sq by {square}; gradient clipping counts its square {clipping} times",
        markup=False,
    )
    if scales is not None:
        _print_training(console, explanation, part)


def _print_training(console: Console, explanation: Explanation, part: Part) -> None:
    console.print()
    consequences = explanation.consequences(part)
    console.print(_training_table(consequences))
    if len(explanation.dims) == 2:
        for rule in (rule for each in consequences for rule in each.rules if rule.shape_factor):
            console.print(f"{rule.name}: multipliers before its own factor for the shape", markup=False)


def _training_table(consequences: Sequence[Consequence]) -> output.OpenTable:
    result = output.table("optimizer", *(f"{heading} times" for heading in _HEADINGS.values()))
    for each in consequences:
        cells = (_value(each.formulas, each.values, key) for key in _HEADINGS)
        result.add_row(", ".join(each.optimizers), *cells)
    return result


def _value(formulas: Mapping[str, str], values: Mapping[str, float] | None, key: str) -> str:
    return "" if key not in formulas else _formula_text(formulas[key], None if values is None else values[key])


def _formula_text(formula: str, value: float | None) -> str:
    return formula if value is None else f"{formula} = {number_text(value)}"
