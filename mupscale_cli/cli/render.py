"""Tables of plans and verifications for people, and the same as documents for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mupscale_cli.cli.output import bytes_text, count_text, counted, number_text, table
from mupscale_cli.plan import Plan, TensorPlan

if TYPE_CHECKING:
    from mupscale_cli.verification import TrainingVerification, Verification

_SHOWN_STEPS = 6


def axes_table(plan: Plan) -> Table:
    """Every axis: size, what it is and, in a plan that widens, its factor."""
    about = {rule.name: rule.about for rule in plan.recipe.axes}
    change = ("factor", "wide") if plan.factors else ()
    result = table("axis", "size", *change, "what", right=("size", *change))
    for axis in plan.axes:
        size = "varies" if axis.size is None else str(axis.size)
        wide = "varies" if axis.wide_size is None else str(axis.wide_size)
        style = "bold" if axis.factor > 1 else None
        after = (f"x{axis.factor}", wide) if plan.factors else ()
        result.add_row(axis.name, size, *after, escape(about[axis.name]), style=style)
    return result


def rules_table(plan: Plan) -> Table:
    """Each rule once for every shape that it was applied to; c and m where the plan widens."""
    groups: dict[tuple[Any, ...], list[TensorPlan]] = {}
    for tensor in plan.tensors:
        groups.setdefault((tensor.rule, tensor.layout, tensor.source.dtype, tensor.source.shape), []).append(tensor)
    change = ("wide shape", "c", "m") if plan.factors else ()
    result = table("tensors", "n", "layout", "type", "shape", *change, right=("n", "c", "m"))
    for (rule, layout, dtype, shape), members in groups.items():
        first = members[0]
        coefficients = " ".join(number_text(c) for c in dict.fromkeys(c for c, _ in first.parts))
        multiplicities = " ".join(str(m) for m in dict.fromkeys(m for _, m in first.parts))
        after = (_shape(first.target.shape), coefficients, multiplicities) if plan.factors else ()
        name = escape(rule.replace("{prefix}", ""))
        result.add_row(name, str(len(members)), escape(layout), dtype, _shape(shape), *after)
    return result


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def print_plan(console: Console, plan: Plan, output: str) -> None:
    """What a widening will do."""
    before, after = plan.num_parameters
    console.print(axes_table(plan))
    console.print()
    console.print(rules_table(plan))
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


def plan_document(plan: Plan, output: str) -> dict[str, Any]:
    """The plan for scripts."""
    before, after = plan.num_parameters
    return {
        "schema_version": 1,
        "recipe": plan.recipe.name,
        "output": output,
        "axes": {a.name: {"size": a.size, "wide_size": a.wide_size, "factor": a.factor} for a in plan.axes},
        "parameters": {"before": before, "after": after},
        "bytes": plan.num_bytes,
        "files": {shard.file: shard.num_bytes for shard in plan.shards},
        "config": [{"key": c.key, "before": c.before, "after": c.after} for c in plan.config_changes],
        "omitted": list(plan.omitted),
        "tensors": [
            {
                "name": tensor.target.name,
                "dtype": tensor.target.dtype,
                "shape": list(tensor.source.shape),
                "wide_shape": list(tensor.target.shape),
                "layout": tensor.layout,
                "parts": [{"coefficient": c, "multiplicity": m} for c, m in tensor.parts],
                "rounded": tensor.is_rounded,
            }
            for tensor in plan.tensors
        ],
    }


def record_text(record: Mapping[str, Any]) -> str:
    """How a widened checkpoint came to be, from its mupscale.json."""
    source = record["source"]
    where = f"{source['repo']} at {source['revision']}" if "repo" in source else source["path"]
    factors = ", ".join(f"{name} x{axis['factor']}" for name, axis in record["axes"].items() if axis["factor"] > 1)
    text = f"widened by mupscale {record['mupscale_version']} from {where}: {factors}"
    found = record["verification"]
    if found is None:
        return f"{text}; not verified"
    worst = max(comparison["max_rel"] for comparison in found["comparisons"])
    return f"{text}; verified in {found['dtype']}, largest relative difference {worst:.1e}"


def untying_advice(plan: Plan) -> str | None:
    """What to do about a readout's factor that is rounded, where something can be done."""
    if plan.tie == "fold" and plan.rounded and plan.recipe.tie and "untie" in plan.recipe.tie.ways:
        return "`--tie untie` rounds no norm, with a readout of its own"
    return None


def print_verification(console: Console, found: Verification) -> None:
    """What was compared, how closely it agrees, and what that is held against."""
    result = table("compared", "largest relative", "largest absolute", right=("largest relative", "largest absolute"))
    for comparison in found.comparisons:
        style = None if comparison.max_rel <= found.tolerance else "bold red"
        result.add_row(escape(comparison.what), f"{comparison.max_rel:.1e}", f"{comparison.max_abs:.1e}", style=style)
    if found.worst_module is not None:
        worst = found.worst_module
        what = f"worst of {found.num_modules} modules (`{worst.what}`)"
        result.add_row(escape(what), f"{worst.max_rel:.1e}", f"{worst.max_abs:.1e}")
    console.print(result)
    console.print(f"tolerance {found.tolerance:.1e} = {found.tolerance_reason}", markup=False)
    if found.rounding is not None:
        console.print(
            f"storing {counted(found.rounded_tensors, 'scaled tensor')} rounds, which moves the logits by "
            f"{found.rounding.max_rel:.1e}; above, the narrow model is rounded alike",
            markup=False,
        )  # fmt: skip
    where = f"{found.dtype} on {found.device}, {found.inputs}"
    if found.training is not None:
        _print_training(console, found.training)
    if found.agrees:
        trained = f", and the same {found.training.steps} steps" if found.training else ""
        console.print(f"[bold green]same function[/]{trained} ({escape(where)})")
        return
    console.print(f"[bold red]the models differ[/] ({escape(where)})")
    if found.first_difference is not None:
        first = found.first_difference
        console.print(f"first module that differs: `{first.what}`, by {first.max_rel:.1e} relative", markup=False)


def _print_training(console: Console, found: TrainingVerification) -> None:
    """Losses of both models side by side, and how far what was trained is apart."""
    result = table("step", "narrow loss", "wide loss", "relative difference", right=("step", "narrow loss", "wide loss",
                   "relative difference"))  # fmt: skip
    shown = range(found.steps) if found.steps <= _SHOWN_STEPS else [*range(_SHOWN_STEPS - 1), found.steps - 1]
    for step in shown:
        narrow, wide = found.losses[step]
        difference = abs(narrow - wide) / abs(narrow) if narrow else abs(wide)
        result.add_row(str(step + 1), f"{narrow:.12f}", f"{wide:.12f}", f"{difference:.1e}")
    console.print()
    console.print(result)
    state = "carried state" if found.carried else "a fresh start"
    console.print(
        f"{found.steps} steps of {found.optimizer} from {state} in float64: losses differ by {found.max_rel:.1e}, "
        f"weights by {found.weights.max_rel:.1e} (`{found.weights.what}`)",
        markup=False,
    )
    console.print(f"tolerance {found.tolerance:.1e} = {found.tolerance_reason}", markup=False)
    console.print(
        f"stored weights{' and state' if found.carried else ''} are within {found.stored.units:.2g} units in the last "
        f"place of c R(W) (`{found.stored.what}`)",
        markup=False,
    )
    if not found.agrees and found.first_difference is not None:
        first = found.first_difference
        text = f"first update that went wrong: `{first.what}`, off by {first.max_rel:.1e} relative"
        console.print(text, style="bold red", markup=False)
