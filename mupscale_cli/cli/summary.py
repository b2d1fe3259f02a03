"""Print the summary of a widening: sizes before and after, equivalence, and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from mupscale_cli.architecture.expressions import look_up
from mupscale_cli.cli import files, output, render, verification_view
from mupscale_cli.cli.output import bytes_text, count_text
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.infer.vocabulary import meaning
from mupscale_cli.optimizers.fates import why_no_state
from mupscale_cli.optimizers.rules.table import kinds_text
from mupscale_cli.plan import Plan
from mupscale_cli.reports.guidance import embeddings_text, idle_reason
from mupscale_cli.reports.outline import num_layers
from mupscale_cli.tasks.widen import Widened
from mupscale_cli.text import counted, time_text

if TYPE_CHECKING:
    from mupscale_cli.verification.result import FunctionCheck

_POLICIES = {
    "copy": "state widened",
    "reset-new": "state widened; new units start from zero",
    "reset": "state reset to zero",
}
_SECTIONS = ("", "text_config", "thinker_config.text_config")  # of the config that may describe the language model


def print_summary(
    console: Console,
    result: Widened,
    seconds: float,
    growth: str | None,
    optimizer: str | Path,
    assumed: Mapping[str, Any],
) -> None:
    """Print the summary of a widening.

    Args:
        console: the console.
        result: the result of the widening.
        seconds: how long it took.
        growth: description of method and noise; None for plain copies.
        optimizer: the optimizer state that the options name.
        assumed: the keys of the source's config that are defaults of its class, because it has none.
    """
    plan = result.plan
    sizes = output.table("", "narrow", "wide", "", right=("narrow", "wide"))
    for row in _sizes(plan):
        sizes.add_row(*row)
    console.print(sizes)
    console.print()
    about = output.table("", "")
    about.show_header = False
    for name, text in _about(result, seconds, growth, optimizer):
        about.add_row(name, text)
    if note := output.assumed_text(assumed):
        about.add_row("config", Text(note, style="yellow"))
    console.print(about)
    if not result.output.is_file():  # whose config and state are written beside it
        files.print_summary(console, result.files)


def print_next(console: Console, result: Widened, model: str | None, optimizer: str | Path, *, is_pushed: bool) -> None:
    """Print the commands that usually come next, and the lines for the trainer, ready to be copied."""
    console.print("\nnext", style="bold")
    for line, why in _next(result, model, optimizer, is_pushed=is_pushed):
        console.print(f"  {line}  [dim]# {why}[/]", soft_wrap=True)
    if result.into_trainer:
        console.print("\ncontinue training", style="bold")
    for line in result.into_trainer:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _sizes(plan: Plan) -> Iterator[tuple[str, str, str, str]]:
    before, after = plan.num_parameters
    yield "parameters", count_text(before), count_text(after), f"x{after / before:.3g}" if before else ""
    if layers := num_layers(tensor.target.name for tensor in plan.tensors):
        old = num_layers(tensor.source.name for tensor in plan.tensors)
        yield "layers", str(old), str(layers), f"x{layers / old:.3g}" if layers != old else ""
    for name, axis in (("heads", "h"), ("key/value heads", "kv")):
        if (heads := _config_value(plan, axis)) is not None:
            yield name, str(heads[0]), str(heads[1]), _times(*heads)
    sources: dict[str, TensorSpec] = {tensor.source.name: tensor.source for tensor in plan.tensors}
    narrow = sum(spec.num_bytes for spec in sources.values())
    files = output.counted(len(plan.shards), "file")
    yield "bytes", bytes_text(narrow), bytes_text(plan.num_bytes), f"in {files}, {_types(plan)}"


def _types(plan: Plan) -> str:
    return ", ".join(dict.fromkeys(tensor.target.dtype for tensor in plan.tensors))


def _times(before: Any, after: Any) -> str:
    same = before == after or not isinstance(before, int) or not isinstance(after, int)
    return "" if same else f"x{after / before:.3g}"


def _config_value(plan: Plan, axis: str) -> tuple[Any, Any] | None:
    """Return an axis's size before and after, from the first config key that holds it; None if there is none."""
    before = {change.key: change.before for change in plan.config_changes}
    for section in _SECTIONS:
        found = look_up(section, plan.config or {}) if section else plan.config
        for key, after in found.items() if isinstance(found, dict) else ():
            if meaning(key).counts == axis and type(after) is int:
                return before.get(f"{section}.{key}".lstrip("."), after), after
    return None


def _about(result: Widened, seconds: float, growth: str | None, optimizer: str | Path) -> Iterator[tuple[str, Text]]:
    if result.verification is None:
        yield "equivalence", Text(f"not verified: {result.skipped}", style="yellow")
    else:
        yield "equivalence", _equivalence(result.verification)
        compared = result.verification.unperturbed or result.verification
        if compared.rounding is not None:
            moved = f"{compared.rounding.max_rel:.1e} of the outputs, which the comparison leaves out"
            yield "rounding", Text(f"{moved}: {counted(compared.rounded_tensors, 'tensor')}, {_types(result.plan)}")
    if growth:
        yield "growth", Text(growth)
    if note := result.plan.names_note:
        yield "names", Text(note)
    for note in result.plan.notes:
        yield "note", Text(note, style="yellow")
    if result.plan.stays_symmetric:
        yield "new width", Text(f"unused so far: {idle_reason(result.plan)}", style="yellow")
    state = result.record["optimizer_state"]
    for note in _training_notes(result.plan, state["kinds"] if state else ()):
        yield "training", Text(note, style="yellow")
    if state:
        yield (
            "optimizer",
            Text(
                f"{_POLICIES[state['policy']]}: {state['file'] or 'in the same file'}, {kinds_text(state['kinds'])} "
                f"({state['policy']})"
            ),
        )
    else:
        yield "optimizer", Text(why_no_state(result.files, optimizer))
    if embeddings := result.plan.embeddings:
        yield "embeddings", Text(embeddings_text(embeddings))
    if folders := result.record["adapters"]:
        yield "adapters", Text(", ".join(str(result.output / folder) for folder in folders))
    yield "written", Text(f"{', '.join(map(str, result.paths))}, in {time_text(seconds)}")


def _training_notes(plan: Plan, kinds: Sequence[str]) -> Iterator[str]:
    """Yield how the training of both models differs."""
    for axis, why in plan.training_differences.items():
        yield f"differs along `{axis}`: {why}"
    yield from render.training_notes(plan, kinds)


def _equivalence(verification: FunctionCheck) -> Text:
    where = f"{verification.dtype} on {verification.device}"
    compared = verification.unperturbed or verification
    figure = _figure(compared)
    if not verification.keeps_function:
        plain = f"; same function without noise: {figure}" if verification.unperturbed else ""
        return Text(f"{verification_view.intended_difference(verification)}{plain} ({where})")
    if verification.unperturbed:
        figure = f"{_figure(verification)}; without noise {compared.max_rel:.1e}"
    modules = f", {verification.num_modules} modules" if verification.num_modules else ""
    return Text(f"same function: {figure} ({where}{modules})")


def _figure(compared: FunctionCheck) -> str:
    return f"largest relative difference {compared.max_rel:.1e}, tolerance {compared.tolerance:.1e}"


def _next(result: Widened, model: str | None, optimizer: str | Path, *, is_pushed: bool) -> Iterator[tuple[str, str]]:
    wide = shlex.quote(str(result.output))
    own = "" if model is None else f" --model {shlex.quote(model)}"
    carried = result.record["optimizer_state"] or {}
    if carried.get("file") and str(optimizer) != "auto":  # by itself, `verify` looks beside the source
        own += f" --optimizer {shlex.quote(str(optimizer))}"
    if result.verification is None and result.record.get("nonfinite"):
        yield f"mupscale verify {wide} --only weights --only files", "check every byte against source and rules"
    elif result.verification is None:
        own_class = "" if model is not None else "; add `--model FILE:FUNCTION` for your own class"
        yield f"mupscale verify {wide}{own}", f"compare both models{own_class}"
    given = "" if carried.get("groups") else " --lr LR --weight-decay WD"
    yield f"mupscale hparams {wide}{given}", "hyperparameters to continue training with"
    if result.plan.trains_alike and result.verification is not None:
        yield f"mupscale verify {wide}{own} --steps 20", "check that both models take the same training steps"
    if result.plan.stays_symmetric:
        yield "mupscale help noise", "put the new width to use, here (`--noise 0.1`) or later in training"
    if not is_pushed:
        yield f"mupscale push {wide} ORG/NAME", "publish it on the Hub"
