"""Print plans and verifications, and build the documents of plans."""

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
from mupscale_cli.reports.guidance import coverage_notes, embeddings_text, guidance
from mupscale_cli.reports.outline import outline
from mupscale_cli.text import growth_factor, listed, numbers_text, shortened

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record
    from mupscale_cli.record.types import Verification as VerificationFigures
    from mupscale_cli.verification.result import (
        FunctionCheck,
        StepComparison,
        TensorsCheck,
        TrainingVerification,
        Verification,
    )

_SHOWN_STEPS = 6
_SHOWN_DIFFERENCES = 5
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


def print_function(console: Console, function: FunctionCheck) -> None:
    """Print what both models computed, the differences, the tolerance and the verdict."""
    result = table("compared", "largest relative", "largest absolute", right=("largest relative", "largest absolute"))
    for comparison in function.comparisons:
        style = None if comparison.max_rel <= function.tolerance or not function.keeps_function else "bold red"
        result.add_row(escape(comparison.what), f"{comparison.max_rel:.1e}", f"{comparison.max_abs:.1e}", style=style)
    if function.worst_module is not None:
        worst = function.worst_module
        what = f"worst of {function.num_modules} modules (`{worst.what}`)"
        result.add_row(escape(what), f"{worst.max_rel:.1e}", f"{worst.max_abs:.1e}")
    console.print(result)
    if function.keeps_function:
        console.print(f"tolerance {function.tolerance:.1e} = {function.tolerance_reason}", markup=False)
    if function.rounding is not None:
        console.print(
            f"storing {counted(function.rounded_tensors, 'tensor')} rounds scaled values or means, which changes the "
            f"logits by {function.rounding.max_rel:.1e}; the comparison above leaves this rounding out",
            markup=False,
        )
    for note in coverage_notes(function.missing, function.unused):
        console.print(note, markup=False)
    if function.unperturbed is not None:
        _print_unperturbed(console, function.unperturbed)
    where = f"{function.dtype} on {function.device}, {function.inputs}"
    style = "bold green" if function.agrees else "bold red"
    console.print(f"[{style}]{function_verdict(function)}[/] ({escape(where)})")
    if function.keeps_function and function.first_difference is not None:
        first = function.first_difference
        console.print(f"first module that differs: `{first.what}`, by {first.max_rel:.1e} relative", markup=False)


def function_verdict(function: FunctionCheck) -> str:
    """Return in a few words what the comparison of both models found."""
    if function.keeps_function:
        return "same function" if function.agrees else "the models differ"
    return intended_difference(function) if function.agrees else "the wide model differs from the plan"


def intended_difference(function: FunctionCheck) -> str:
    """Return how far apart two models are that are meant to differ."""
    return f"differs as intended: {function.max_rel:.1e} relative"


def print_verification(console: Console, verification: Verification) -> None:
    """Print a whole verification: details of the models, then what each part covered and found."""
    if verification.function is not None:
        print_function(console, verification.function)
        console.print()
    if verification.training is not None:
        _print_training(console, verification.training)
        console.print()
    parts = table("part", "covers", "found")
    for part, (covers, found, differences) in _parts(verification).items():
        parts.add_row(part, escape(covers), escape(found), style="bold red" if differences else None)
    for part, reason in verification.skipped.items():
        parts.add_row(part, "", escape(f"not compared: {reason}"), style="yellow")
    console.print(parts)
    for part, (_, _, differences) in _parts(verification).items():
        for difference in differences[:_SHOWN_DIFFERENCES]:
            console.print(f"{part}: {difference}", style="bold red", markup=False, soft_wrap=True)
        if (more := len(differences) - _SHOWN_DIFFERENCES) > 0:
            console.print(f"{part}: and {more} more", style="bold red", markup=False)


def _parts(verification: Verification) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return for each part of a verification what it covered, what it found, and its differences."""
    parts: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    if (function := verification.function) is not None:
        covers = f"{counted(len(function.comparisons), 'output')}, {counted(function.num_modules, 'module')}"
        parts["function"] = covers, function_verdict(function), () if function.agrees else (_first(function),)
    if (training := verification.training) is not None:
        differences = _training_differences(training)
        others = f", without {counted(len(training.inexact), 'tensor')}" if training.inexact else ""
        parts["training"] = (
            f"{counted(training.steps, 'step')} of {training.optimizer}{others}",
            _found(differences),
            differences,
        )
    if (weights := verification.weights) is not None:
        parts["weights"] = _tensors_text(weights), _found(weights.differences), weights.differences
    if (config := verification.config) is not None:
        parts["config"] = (
            f"{counted(config.num_keys, 'key')} of config.json",
            _found(config.differences),
            config.differences,
        )
    if (files := verification.files) is not None:
        parts["files"] = ", ".join(files.names), _found(files.differences), files.differences
        if (state := files.state) is not None:
            parts["optimizer"] = f"{_tensors_text(state)}, settings", _found(state.differences), state.differences
        elif files.state_skipped is not None:
            parts["optimizer"] = "", f"not compared: {files.state_skipped}", ()
    return parts


def _tensors_text(check: TensorsCheck) -> str:
    return f"{counted(check.num_tensors, 'tensor')}, {bytes_text(check.num_bytes)}, every byte"


def _found(differences: tuple[str, ...]) -> str:
    return counted(len(differences), "difference") if differences else "as planned"


def _first(function: FunctionCheck) -> str:
    """Return the verdict on models that differ, and the first place where they do."""
    first = function.first_difference if function.keeps_function else None
    where = "" if first is None else f", first in `{first.what}`, by {first.max_rel:.1e} relative"
    return f"{function_verdict(function)}{where}"


def _training_differences(training: TrainingVerification) -> tuple[str, ...]:
    """Return how the training of both models differs."""
    found = []
    if training.stored_differences:
        found.append(f"stored values differ from the plan: {listed(training.stored_differences, 3)}")
    if not training.steps_agree:
        first = "" if training.first_difference is None else f", {_first_update(training.first_difference)}"
        found.append(f"the models train differently{first}")
    return tuple(found)


def failure_text(verification: Verification) -> str:
    """Return the reasons why a verification failed, one a line."""
    return "\n".join(
        f"{part}: {difference}" for part, (_, _, found) in _parts(verification).items() for difference in found
    )


def _print_unperturbed(console: Console, function: FunctionCheck) -> None:
    """Print the comparison with the model without its noise."""
    tolerance = f"{function.tolerance:.1e} = {function.tolerance_reason}"
    worst = f"{function.max_rel:.1e} relative, tolerance {tolerance}"
    if function.agrees:
        console.print(f"without noise: same function, {worst}", markup=False)
        return
    console.print(f"without noise, the models differ: {worst}", style="bold red", markup=False)
    if function.first_difference is not None:
        first = function.first_difference
        console.print(f"first module that differs: `{first.what}`, by {first.max_rel:.1e} relative", markup=False)


def _print_training(console: Console, training: TrainingVerification) -> None:
    """Print the losses of both models side by side, and the differences after training."""
    heading = f"wide loss without {' and '.join(training.removed)}" if training.removed else "wide loss"
    columns = ("step", "narrow loss", heading, "relative difference")
    result = table(*columns, right=columns)
    shown = range(training.steps) if training.steps <= _SHOWN_STEPS else [*range(_SHOWN_STEPS - 1), training.steps - 1]
    for step in shown:
        narrow, wide = training.losses[step]
        difference = abs(narrow - wide) / abs(narrow) if narrow else abs(wide)
        result.add_row(str(step + 1), f"{narrow:.12f}", f"{wide:.12f}", f"{difference:.1e}")
    console.print(result)
    worst = training.weights
    frozen = f", with the new blocks of {listed(training.frozen)} frozen," if training.frozen else ""
    console.print(
        f"{counted(training.steps, 'step')} of {training.optimizer} from {training.start}{frozen} in float64: losses "
        f"differ by {training.max_rel:.1e}, allowed {training.tolerance:.1e}; weights by {worst.max_rel:.1e}, allowed "
        f"{worst.allowed:.1e}, after moving by {worst.moved:.1e} (`{worst.what}`)",
        markup=False,
    )
    console.print(
        f"allowed: {training.factor:.3g} times what moving every parameter to a neighboring number before each step "
        f"changes; {training.factor:.3g} = {training.factor_reason}",
        markup=False,
    )
    if training.ignored:
        elements = counted(training.ignored, "element")
        console.print(f"not compared: {elements} whose gradients are only rounding errors", markup=False)
    for text in training.caveats:
        left_out = f"the first step is compared, without {counted(len(training.inexact), 'tensor')}"
        console.print(f"{left_out}: {text}", style="yellow", markup=False)
    stored, differences = "weights and state" if training.carried else "weights", training.stored_differences
    if not differences:
        console.print(f"stored {stored} are exactly as planned", markup=False)
    else:
        console.print(f"stored {stored} differ from the plan: {listed(differences, 3)}", style="bold red", markup=False)
    if training.first_difference is not None:
        console.print(_first_update(training.first_difference), style="bold red", markup=False)


def _first_update(first: StepComparison) -> str:
    return f"first update that differs: `{first.what}`, by {first.max_rel:.1e} relative, allowed {first.allowed:.1e}"
