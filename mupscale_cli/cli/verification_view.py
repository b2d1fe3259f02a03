"""Print what a verification found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from mupscale_cli.cli.output import bytes_text, counted, table
from mupscale_cli.reports.guidance import coverage_notes
from mupscale_cli.text import listed

if TYPE_CHECKING:
    from mupscale_cli.verification.result import (
        FunctionCheck,
        StepComparison,
        TensorsCheck,
        TrainingVerification,
        Verification,
    )

_SHOWN_STEPS = 6
_SHOWN_DIFFERENCES = 5


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
