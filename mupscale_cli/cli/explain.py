"""One tensor explained for people: its dimensions, the formulas with their values, what they mean for training."""

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
    from mupscale_cli.reports.explain import Consequence, Explanation, Part

TensorName = Annotated[
    str | None,
    typer.Option(
        "--tensor",
        "-t",
        metavar="NAME",
        help="Explain one tensor in words: its dimensions, the formulas of its coefficient and multiplicity with their "
        "values, and what they mean for learning rate, eps and weight decay. The end of a name is enough: q_proj.",
        autocompletion=complete_tensor,
    ),
]
_HEADINGS = {"lr": "lr", "eps": "eps", "weight_decay": "weight decay"}


def show_tensor(plan: Plan, name: str, factors: Mapping[str, int] | None = None, *, as_json: bool) -> None:
    """Print what happens to the tensors of a plan that a name means.

    Args:
        plan: of a widening, or of none.
        name: the tensor's, or the end of it.
        factors: of the axes, where the plan widens none but they are known.
        as_json: as one document.

    Raises:
        PlanError: none is meant, or too many are.
    """
    from mupscale_cli.reports.explain import explain_tensor

    _show(explain_tensor(plan, name, factors), plan.recipe, as_json=as_json)


def show_rule(recipe: Recipe, name: str, *, as_json: bool) -> None:
    """Print what happens to the tensors of a rule that a name means, for any factors.

    Raises:
        PlanError: none is meant, or too many are.
    """
    from mupscale_cli.reports.explain import explain_rule

    _show(explain_rule(recipe, name), recipe, as_json=as_json)


def _show(found: Sequence[Explanation], recipe: Recipe, *, as_json: bool) -> None:
    """Print explanations, one below the other, or as one document."""
    if as_json:
        output.print_document("explain", {"recipe": recipe.name, "tensors": [each.as_record() for each in found]})
        return
    console = output.stdout()
    for number, explanation in enumerate(found):
        if number:
            console.print()
        _print(console, explanation, recipe.file)


def _print(console: Console, found: Explanation, file: str) -> None:
    more = f", and {len(found.names) - 1} more like it" if len(found.names) > 1 else ""
    console.print(f"[bold]{escape(found.names[0])}[/]{more}", soft_wrap=True)
    if found.shapes is not None:
        before, after = ("x".join(map(str, shape)) or "scalar" for shape in found.shapes)
        console.print(f"{found.dtype}, {before if before == after else f'{before} -> {after}'}", markup=False)
    when = f", {'' if found.when == 'otherwise' else 'when '}{found.when}" if found.when else ""
    console.print(f"rule of {file}: {found.rule}: {found.layout}{when}", markup=False)
    if found.layout in ("keep", "omit"):
        console.print("copied as it is" if found.layout == "keep" else "left out", markup=False)
        return
    console.print()
    console.print(_dims_table(found))
    console.print()
    for remark in found.remarks:
        console.print(remark, markup=False)
    if not found.is_widened:
        console.print("none of its axes is widened, so it is copied as it is", markup=False)
        return
    console.print("W' = c R(W): R repeats an element m times, each copy is c times the element", markup=False)
    for number, part in enumerate(found.parts, 1):
        if len(found.parts) > 1:
            console.print(f"\npart {number} of {len(found.parts)}", style="bold")
        _print_part(console, found, part)
    if found.factors is None:
        _print_training(console, found, found.parts[0])


def _dims_table(found: Explanation) -> output.OpenTable:
    has_sizes, has_factors = found.shapes is not None, found.factors is not None
    columns = (*(("size",) if has_sizes else ()), *(("factor",) if has_factors else ()))
    result = output.table("dim", "made of", *columns, "what", right=columns)
    for number, items in enumerate(found.dims):
        for place, item in enumerate(items):
            size = "" if item.size is None else str(item.size)
            factor = "" if item.factor is None else f"x{item.factor}"
            cells = (*((size,) if has_sizes else ()), *((factor,) if has_factors else ()))
            style = "bold" if (item.factor or 1) > 1 else None
            name = "  " * item.depth + item.what
            result.add_row(str(number) if place == 0 else "", escape(name), *cells, escape(item.words), style=style)
    return result


def _print_part(console: Console, found: Explanation, part: Part) -> None:
    scales = found.scales(part)
    c, m = ("", "") if scales is None else (f" = {number_text(scales[0])}", f" = {number_text(scales[1])}")
    console.print(f"c = {part.c}{c}", markup=False)
    console.print(f"m = {part.m}{m}", markup=False)
    if scales is None:
        bare_c, bare_m = found.bare_factor(part)
        console.print(f"with `--factor K`: c = {bare_c}, m = {bare_m}", markup=False)
    elif (pieces := part.pieces.value(found.factors or {})) > 1:
        console.print(
            f"the layer's sum meets {pieces:g} shares of an element; they are split so that they add up to it exactly",
            markup=False,
        )
    console.print(
        f"\na copy has {_said('1/(m c)', scales and 1 / (scales[0] * scales[1]))} of the element's gradient, so Adam's "
        f"exp_avg is multiplied by that, exp_avg_sq by {_said('1/(m c)^2', scales and (scales[0] * scales[1]) ** -2)}; "
        f"in a clipped norm its square counts {_said('m c^2', scales and scales[1] * scales[0] ** 2)} times",
        markup=False,
    )
    if scales is not None:
        _print_training(console, found, part)


def _print_training(console: Console, found: Explanation, part: Part) -> None:
    console.print()
    consequences = found.consequences(part)
    console.print(_training_table(consequences))
    if len(found.dims) == 2:
        for rule in (rule for each in consequences for rule in each.rules if rule.shape_factor):
            console.print(f"{rule.name}'s are those before its own factor for the shape", markup=False)


def _training_table(found: Sequence[Consequence]) -> output.OpenTable:
    result = output.table("optimizer", *(f"{heading} times" for heading in _HEADINGS.values()))
    for each in found:
        cells = (_value(each.formulas, each.values, key) for key in _HEADINGS)
        result.add_row(", ".join(each.optimizers), *cells)
    return result


def _value(formulas: Mapping[str, str], values: Mapping[str, float] | None, key: str) -> str:
    return "" if key not in formulas else _said(formulas[key], None if values is None else values[key])


def _said(formula: str, value: float | None) -> str:
    return formula if value is None else f"{formula} = {number_text(value)}"
