"""Print plans and records, and build the documents of plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.cli.output import bytes_text, count_text, counted, table
from mupscale_cli.cli.tree import axis_styles, tensors_tree
from mupscale_cli.optimizers.caveats import inexact_parts
from mupscale_cli.optimizers.multipliers import ScaledTensor
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.plan import Plan
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.methods import MUPSCALE, Method
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.plan.types import GoalComparison, KeyDifference
from mupscale_cli.record.reading import recorded_method
from mupscale_cli.reports.guidance import embeddings_text, guidance
from mupscale_cli.reports.outline import outline
from mupscale_cli.text import growth_factor, numbers_text, shortened

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record
    from mupscale_cli.record.types import Verification as VerificationFigures

_SHOWN_VALUE = 14  # characters of a config's value


def axes_table(plan: Plan) -> Table:
    """Return a table of the axes: size, description and, in a plan that widens, factor and wide size."""
    about = {rule.name: rule.about for rule in plan.recipe.axes} | {r.name: r.about for r in plan.recipe.depths}
    styles = axis_styles(plan)
    change = ("factor", "wide") if plan.factors or plan.blocks else ()
    result = table("axis", "size", *change, "what", right=("size", *change))
    for axis in plan.axes:
        size = "varies" if axis.size is None else str(axis.size)
        wide = "varies" if axis.wide_size is None else str(axis.wide_size)
        style = "bold" if axis.ratio > 1 else None
        after = (growth_factor(axis.size, axis.wide_size, axis.factor), wide) if change else ()
        name = Text(axis.name, style=styles.get(axis.name, ""))
        result.add_row(name, size, *after, escape(about[axis.name]), style=style)
    for stack, units in plan.blocks.items():
        new = f"{about[stack]}; new at {numbers_text(units.new)}"
        after = (f"+{len(units.new)}", str(units.wide_size))
        result.add_row(stack, str(units.size), *after, escape(new), style="bold")
    return result


def print_plan(console: Console, plan: Plan, output: str) -> None:
    """Print a plan: axes, tensors, config changes and sizes."""
    before, after = plan.num_parameters
    print_goal(console, plan)
    console.print(axes_table(plan))
    console.print()
    console.print(tensors_tree(plan, console))
    console.print()
    for name, changes in (
        (CONFIG, plan.config_changes),
        *((name, side.changes) for name, side in plan.side_files.items()),
    ):
        for change in changes:
            before_text = "(absent)" if change.before is None else change.before
            console.print(f"{name}  {change.key}: {before_text} -> {change.after}", markup=False)
    for module in plan.modules:
        for tensor in module.tensors:
            shapes = " -> ".join("x".join(map(str, spec.shape)) for spec in (tensor.source, tensor.target))
            console.print(f"{module.folder}  {tensor.target.name}: {shapes}, {tensor.layout}", markup=False)
    if plan.embeddings is not None:
        console.print(f"embeddings   {embeddings_text(plan.embeddings)}", markup=False)
    if plan.names_note:
        console.print(plan.names_note, markup=False)
    for note in (*plan.notes, *training_notes(plan)):
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    if plan.omitted:
        console.print(f"omitted      {', '.join(plan.omitted)}", markup=False)
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


def training_notes(plan: Plan, kinds: Sequence[str] = ()) -> tuple[str, ...]:
    """Say which tensors the optimizer's settings cannot fit in all of their parts.

    Args:
        plan: the plan.
        kinds: the names of the optimizers whose state is widened. Default: AdamW.
    """
    tensors = [ScaledTensor.of(tensor, tensor.target.name) for tensor in plan.tensors]
    rules = [OPTIMIZERS[kind] for kind in kinds or ("adamw",)]
    return tuple(f"with {rule.title}, {text}" for rule in rules for text in inexact_parts(rule, tensors))


def growth_text(method: Method, noise: Perturbation | None) -> str | None:
    """Describe method and noise; return None for plain copies without noise."""
    if method.name == MUPSCALE.name and noise is None:
        return None
    recorded = () if method.name == MUPSCALE.name else method.recorded
    options = (f", {option} {getattr(method, option):.15g}" for option in recorded)
    text = f"method {method.name}{''.join(options)}"
    if noise is None:
        return text
    where = f", on {' and '.join(noise.on)}" if noise.on else ""
    return f"{text}; {noise.mode} noise {noise.size:.3g} of {_SCALES[noise.scale]}{where}, seed {noise.seed}"


_SCALES = {
    "spectral": "each matrix's spectral norm",
    "rms": "each tensor's root mean square",
    "fan-in": "1/sqrt(fan_in)",
    "init": "the standard deviation of a fresh initialization",
    "paper": "1/(k sqrt(fan_in))",
    "elementwise": "each element's absolute value",
}


def print_guidance(console: Console, plan: Plan) -> None:
    """Print how much the model grows, with advice from published measurements."""
    advice = guidance(plan)
    console.print(
        f"\ngrowth: {advice.growth:.3g} times the parameters, {count_text(advice.flops[0])} -> "
        f"{count_text(advice.flops[1])} FLOPs per token of a forward pass",
        markup=False,
    )
    for line in advice.advice:
        console.print(f"  {line}", markup=False)


def plan_document(plan: Plan, output: str) -> dict[str, Any]:
    """Return the JSON document of a plan."""
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
        "to": plan.goal and {"name": plan.goal.name, "keys": [_key_document(row) for row in plan.goal.keys]},
        "omitted": list(plan.omitted),
        "notes": list(plan.notes),
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


def print_shapes(console: Console, shapes: Sequence[Plan]) -> None:
    """Print the shapes that `--params` proposes, if any."""
    if not shapes:
        return
    columns = ("parameters", "FLOPs per token", "bytes")
    result = table(*columns, "grows", right=columns)
    for number, plan in enumerate(shapes):
        style = "bold" if number == 0 else None
        flops = count_text(guidance(plan).flops[1])
        result.add_row(
            count_text(plan.num_parameters[1]), flops, bytes_text(plan.num_bytes), _growths_text(plan), style=style
        )
    console.print(result)
    options = " ".join(f"--axis {axis.name}:{axis.wide_size}" for axis in grown_axes(shapes[-1]))
    console.print("\nthe first shape is planned below", end="")
    if len(shapes) > 1:
        console.print(f"; for the last one, write `{options}`", markup=False, soft_wrap=True, end="")
    console.print("\n")


def shapes_document(shapes: Sequence[Plan]) -> list[dict[str, Any]]:
    """Return the proposed shapes for the JSON document of a plan."""
    return [
        {
            "axes": {axis.name: axis.wide_size for axis in grown_axes(plan)},
            "parameters": plan.num_parameters[1],
            "flops_per_token": guidance(plan).flops[1],
            "bytes": plan.num_bytes,
        }
        for plan in shapes
    ]


def shape_text(plan: Plan) -> str:
    """Describe the size of a plan's output, and how each axis grows."""
    return f"{count_text(plan.num_parameters[1])} parameters; {_growths_text(plan)}"


def grown_axes(plan: Plan) -> list[Axis]:
    """Return the axes that have another size in the output."""
    return [axis for axis in plan.axes if axis.wide_size != axis.size or axis.factor > 1]


def _growths_text(plan: Plan) -> str:
    growths = (
        (axis, f"x{axis.factor}" + (f" + {axis.fresh + axis.extra}" if axis.fresh or axis.extra else ""))
        for axis in grown_axes(plan)
    )
    return ", ".join(f"{axis.name} {axis.size} -> {axis.wide_size} ({growth})" for axis, growth in growths)


def _key_document(row: KeyDifference) -> dict[str, Any]:
    return {"key": row.key, "before": row.before, "target": row.target, "after": row.after, "fate": row.fate}


def print_goal(console: Console, plan: Plan) -> None:
    """Print the config keys that differ between the source and the model whose sizes are taken, if there is one."""
    if plan.goal is None:
        return
    console.print(f"sizes of {plan.goal.name}", markup=False, soft_wrap=True)
    console.print(_goal_table(plan.goal))
    console.print()


def _goal_table(goal: GoalComparison) -> Table:
    result = table("key", "source", "target", "output", "", right=("source", "target", "output"))
    for row in sorted(goal.keys, key=lambda row: row.fate):
        texts = (escape(_value_text(value)) for value in (row.before, row.target, row.after))
        result.add_row(escape(row.key), *texts, row.fate, style="bold" if row.fate == "grown" else None)
    return result


def _value_text(value: object) -> str:
    text = counted(len(value), "entry", "entries") if isinstance(value, list) else str(value)
    return "-" if value is None else shortened(text, _SHOWN_VALUE)


def record_text(record: Record) -> str:
    """Describe how a widened checkpoint was made, from its mupscale.json.

    Raises:
        PlanError: this version does not know the method.
    """
    growth = growth_text(*recorded_method(record))
    source = record["source"]
    where = f"{source['repo']} at {source['revision']}" if "repo" in source else source["path"]
    grown = {
        name: growth_factor(axis["size"], axis["wide_size"], axis["factor"]) for name, axis in record["axes"].items()
    }
    factors = ", ".join(f"{name} {factor}" for name, factor in grown.items() if factor != "x1")
    text = f"widened by mupscale {record['mupscale_version']} from {where}: {factors}"
    return "; ".join((text, *((growth,) if growth else ()), _verified_text(record["verification"])))


def _verified_text(figures: VerificationFigures | None) -> str:
    """Describe the last verification."""
    if figures is None:
        return "not verified"
    function = figures["function"]
    if function is None:
        return "files verified, but no model was run" if figures["agrees"] else "the last verification FAILED"
    compared = function["unperturbed"] or function
    worst = max(float(comparison["max_rel"]) for comparison in compared["comparisons"])
    difference = f"largest relative difference {worst:.1e} in {function['dtype']}"
    if not figures["agrees"]:
        return f"the last verification FAILED, {difference}"
    if compared is function and not function["keeps_function"]:
        return f"differs as intended, {difference}"
    return f"verified{' without noise' if compared is not function else ''}, {difference}"


def untying_advice(plan: Plan) -> str | None:
    """Return advice if a tied readout's factor is rounded and another `--tie` avoids that."""
    if plan.fold_rounds and plan.recipe.tie and "untie" in plan.recipe.tie.ways:
        return "`--tie untie` avoids this rounding; it gives the readout a tensor of its own"
    return None
