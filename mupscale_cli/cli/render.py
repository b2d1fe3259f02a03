"""Tables of plans and verifications for people, and the same as documents for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mupscale_cli.cli.output import bytes_text, count_text, counted, table
from mupscale_cli.cli.tree import axis_styles, tensors_tree
from mupscale_cli.plan import Plan
from mupscale_cli.plan.methods import MUPSCALE, Method
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.record.reading import recorded_method
from mupscale_cli.reports.guidance import guidance
from mupscale_cli.reports.outline import outline

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record
    from mupscale_cli.record.types import Verification as VerificationFigures
    from mupscale_cli.verification.result import TrainingVerification, Verification, WeightsCheck

_SHOWN_STEPS = 6
_SHOWN_DIFFERENCES = 5


def axes_table(plan: Plan) -> Table:
    """Every axis: size, what it is and, in a plan that widens, its factor."""
    about = {rule.name: rule.about for rule in plan.recipe.axes}
    styles = axis_styles(plan)
    change = ("factor", "wide") if plan.factors else ()
    result = table("axis", "size", *change, "what", right=("size", *change))
    for axis in plan.axes:
        size = "varies" if axis.size is None else str(axis.size)
        wide = "varies" if axis.wide_size is None else str(axis.wide_size)
        style = "bold" if axis.factor > 1 else None
        after = (f"x{axis.factor}", wide) if plan.factors else ()
        name = Text(axis.name, style=styles.get(axis.name, ""))
        result.add_row(name, size, *after, escape(about[axis.name]), style=style)
    return result


def print_plan(console: Console, plan: Plan, output: str) -> None:
    """What a widening will do."""
    before, after = plan.num_parameters
    console.print(axes_table(plan))
    console.print()
    console.print(tensors_tree(plan, console))
    console.print()
    for change in plan.config_changes:
        console.print(f"config.json  {change.key}: {change.before} -> {change.after}", markup=False)
    if plan.omitted:
        console.print(f"left out     {', '.join(plan.omitted)}", markup=False)
    if plan.rounded:
        console.print(f"rounded      {', '.join(tensor.target.name for tensor in plan.rounded)}", markup=False)
        if advice := untying_advice(plan):
            console.print(f"             {advice}", markup=False)
    console.print(
        f"\nrecipe {plan.recipe.name}, {count_text(before)} -> {count_text(after)} parameters, "
        f"{bytes_text(plan.num_bytes)} in {counted(len(plan.shards), 'file')} at {output}",
        markup=False,
    )
    if growth := growth_text(plan.method, plan.perturbation):
        console.print(growth, markup=False)


def growth_text(method: Method, noise: Perturbation | None) -> str | None:
    """By which method and with which noise a model grows; None where that is the plain method."""
    if method.name == MUPSCALE.name and noise is None:
        return None
    options = (f", {option} {getattr(method, option):.15g}" for option in method.recorded)
    text = f"method {method.name}{''.join(options)}"
    if noise is None:
        return text
    return f"{text}; {noise.mode} noise {noise.size:.3g} of {_SCALES[noise.scale]}, seed {noise.seed}"


_SCALES = {
    "spectral": "each matrix's spectral norm",
    "rms": "each tensor's root mean square",
    "fan-in": "1/sqrt(fan_in)",
    "init": "a fresh initialisation",
}


def print_guidance(console: Console, plan: Plan) -> None:
    """What this growth is, in the terms of those who measured when growing pays."""
    found = guidance(plan)
    console.print(
        f"\ngrowth: {found.growth:.3g} times the parameters, {count_text(found.flops[0])} -> "
        f"{count_text(found.flops[1])} FLOPs a token forward",
        markup=False,
    )
    for line in found.advice:
        console.print(f"  {line}", markup=False)


def plan_document(plan: Plan, output: str) -> dict[str, Any]:
    """The plan for scripts."""
    before, after = plan.num_parameters
    return {
        "recipe": plan.recipe.name,
        "output": output,
        "axes": {a.name: {"size": a.size, "wide_size": a.wide_size, "factor": a.factor} for a in plan.axes},
        "parameters": {"before": before, "after": after},
        "method": plan.method.as_record(),
        "perturbation": plan.perturbation.as_record() if plan.perturbation else None,
        "growth": guidance(plan).as_record() if plan.factors else None,
        "bytes": plan.num_bytes,
        "files": {shard.file: shard.num_bytes for shard in plan.shards},
        "config": [{"key": c.key, "before": c.before, "after": c.after} for c in plan.config_changes],
        "omitted": list(plan.omitted),
        "tensors": [
            {
                "name": tensor.target.name,
                "source": tensor.source.name,
                "rule": tensor.rule,
                "dtype": tensor.target.dtype,
                "shape": list(tensor.source.shape),
                "wide_shape": list(tensor.target.shape),
                "layout": tensor.layout,
                "parts": [{"coefficient": c, "multiplicity": m} for c, m in tensor.parts],
                "bytes": tensor.source.num_bytes,
                "wide_bytes": tensor.target.num_bytes,
                "rounded": tensor.is_rounded,
            }
            for tensor in plan.tensors
        ],
        "tree": [node.as_record() for node in outline(plan)],
    }


def record_text(record: Record) -> str:
    """How a widened checkpoint came to be, from its mupscale.json.

    Raises:
        PlanError: this version does not know the method.
    """
    growth = growth_text(*recorded_method(record))
    source = record["source"]
    where = f"{source['repo']} at {source['revision']}" if "repo" in source else source["path"]
    factors = ", ".join(f"{name} x{axis['factor']}" for name, axis in record["axes"].items() if axis["factor"] > 1)
    text = f"widened by mupscale {record['mupscale_version']} from {where}: {factors}"
    return "; ".join((text, *((growth,) if growth else ()), _verified_text(record["verification"])))


def _verified_text(found: VerificationFigures | None) -> str:
    """What the last verification said."""
    if found is None:
        return "not verified"
    compared = found["unperturbed"] or found
    worst = max(float(comparison["max_rel"]) for comparison in compared["comparisons"])
    figure = f"largest relative difference {worst:.1e} in {found['dtype']}"
    if not found["agrees"]:
        return f"its last verification FAILED, {figure}"
    if compared is found and not found["keeps_function"]:
        return f"as planned another function, {figure}"
    return f"verified{' without its noise' if compared is not found else ''}, {figure}"


def untying_advice(plan: Plan) -> str | None:
    """What to do about a readout's factor that is rounded, where something can be done."""
    if plan.tie == "fold" and plan.rounded and plan.recipe.tie and "untie" in plan.recipe.tie.ways:
        return "`--tie untie` rounds no norm, with a readout of its own"
    return None


def print_verification(console: Console, found: Verification) -> None:
    """What was compared, how closely it agrees, and what that is held against."""
    result = table("compared", "largest relative", "largest absolute", right=("largest relative", "largest absolute"))
    for comparison in found.comparisons:
        style = None if comparison.max_rel <= found.tolerance or not found.keeps_function else "bold red"
        result.add_row(escape(comparison.what), f"{comparison.max_rel:.1e}", f"{comparison.max_abs:.1e}", style=style)
    if found.worst_module is not None:
        worst = found.worst_module
        what = f"worst of {found.num_modules} modules (`{worst.what}`)"
        result.add_row(escape(what), f"{worst.max_rel:.1e}", f"{worst.max_abs:.1e}")
    console.print(result)
    if found.keeps_function:
        console.print(f"tolerance {found.tolerance:.1e} = {found.tolerance_reason}", markup=False)
    if found.rounding is not None:
        console.print(
            f"storing {counted(found.rounded_tensors, 'scaled tensor')} rounds, which moves the logits by "
            f"{found.rounding.max_rel:.1e}; above, the narrow model is rounded alike",
            markup=False,
        )
    where = f"{found.dtype} on {found.device}, {found.inputs}"
    if found.training is not None:
        _print_training(console, found.training)
    if found.weights is not None:
        print_weights(console, found.weights)
    if found.unperturbed is not None:
        _print_unperturbed(console, found.unperturbed)
    if not found.keeps_function:
        _print_other_function(console, found)
        return
    if found.agrees:
        trained = f", and the same {found.training.steps} steps" if found.training else ""
        trained += " without its noise" if found.training and found.training.without_noise else ""
        console.print(f"[bold green]same function[/]{trained} ({escape(where)})")
        return
    console.print(f"[bold red]{_verdict(found)}[/] ({escape(where)})")
    if found.first_difference is not None:
        first = found.first_difference
        console.print(f"first module that differs: `{first.what}`, by {first.max_rel:.1e} relative", markup=False)


def _verdict(found: Verification) -> str:
    only_stored = found.training is not None and found.training.steps_agree and found.first_difference is None
    return "what is stored is not what was planned" if only_stored else "the models differ"


def why_not(found: Verification) -> str:
    """What is wrong with models that do not agree, in a line."""
    if found.weights is not None and not found.weights.agrees:
        return "; ".join(found.weights.differences)
    if not found.keeps_function:
        return "not what was planned"
    training = found.training
    if training is not None and training.steps_agree and not training.is_stored_correctly:
        return f"{_verdict(found)}: `{training.stored.what}`"
    first = found.first_difference or (training.first_difference if training is not None else None)
    where = "" if first is None else f", first in `{first.what}`, by {first.max_rel:.1e} relative"
    return f"{_verdict(found)}{where}"


def _print_other_function(console: Console, found: Verification) -> None:
    """The last word on a model that is not meant to be equal."""
    where = f"{found.dtype} on {found.device}, {found.inputs}"
    if found.agrees:
        console.print(f"[bold green]as planned[/]: another function, by {found.max_rel:.1e} relative ({escape(where)})")
    else:
        console.print(f"[bold red]not what was planned[/] ({escape(where)})")


def _print_unperturbed(console: Console, found: Verification) -> None:
    """The same comparison without the noise."""
    worst = f"{found.max_rel:.1e} relative, tolerance {found.tolerance:.1e} = {found.tolerance_reason}"
    if found.agrees:
        console.print(f"without its noise: same function, {worst}", markup=False)
        return
    console.print(f"without its noise the models differ: {worst}", style="bold red", markup=False)
    if found.first_difference is not None:
        first = found.first_difference
        console.print(f"first module that differs: `{first.what}`, by {first.max_rel:.1e} relative", markup=False)


def print_weights(console: Console, found: WeightsCheck) -> None:
    """Whether every byte is what was planned."""
    _print_bytes(console, "weights", found)
    if found.state is not None:
        _print_bytes(console, "optimizer state", found.state)
    elif found.state_skipped is not None:
        console.print(f"optimizer state: not compared: {found.state_skipped}", markup=False, soft_wrap=True)


def _print_bytes(console: Console, what: str, found: WeightsCheck) -> None:
    for difference in found.differences[:_SHOWN_DIFFERENCES]:
        console.print(f"{what}: {difference}", style="bold red", markup=False)
    more = len(found.differences) - _SHOWN_DIFFERENCES
    if more > 0:
        console.print(f"{what}: and {more} more", style="bold red", markup=False)
    if not found.differences and not found.num_tensors:
        console.print(f"{what}: has no tensors, as planned", markup=False)
    elif not found.differences:
        console.print(
            f"{what}: {counted(found.num_tensors, 'tensor')}, {bytes_text(found.num_bytes)}, each byte what source, "
            "rule and noise make it",
            markup=False,
        )


def _print_training(console: Console, found: TrainingVerification) -> None:
    """Losses of both models side by side, and how far what was trained is apart."""
    heading = "wide loss without noise" if found.without_noise else "wide loss"
    columns = ("step", "narrow loss", heading, "relative difference")
    result = table(*columns, right=columns)
    shown = range(found.steps) if found.steps <= _SHOWN_STEPS else [*range(_SHOWN_STEPS - 1), found.steps - 1]
    for step in shown:
        narrow, wide = found.losses[step]
        difference = abs(narrow - wide) / abs(narrow) if narrow else abs(wide)
        result.add_row(str(step + 1), f"{narrow:.12f}", f"{wide:.12f}", f"{difference:.1e}")
    console.print()
    console.print(result)
    console.print(
        f"{found.steps} steps of {found.optimizer} from {found.start} in float64: losses differ by "
        f"{found.max_rel:.1e}, weights by {found.weights.max_rel:.1e} (`{found.weights.what}`)",
        markup=False,
    )
    console.print(f"tolerance {found.tolerance:.1e} = {found.tolerance_reason}", markup=False)
    stored, place = "weights and state" if found.carried else "weights", "units in the last place"
    if found.is_stored_correctly:
        text = f"stored {stored} are within {found.stored.units:.2g} {place} of c R(W) (`{found.stored.what}`)"
        console.print(text, markup=False)
    else:
        text = f"the stored `{found.stored.what}` is not c R(W): {found.stored.units:.2g} {place} off, tolerance 1"
        console.print(text, style="bold red", markup=False)
    if not found.agrees and found.first_difference is not None:
        first = found.first_difference
        text = f"first update that went wrong: `{first.what}`, off by {first.max_rel:.1e} relative"
        console.print(text, style="bold red", markup=False)
