"""`mupscale recipes`: list, show, coverage, check, infer."""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from mupscale_cli.architecture.layouts import AxisRef, Layout, axis_refs
from mupscale_cli.architecture.loading import Heading, load_recipe, read_headings
from mupscale_cli.architecture.types import AxisRule, Recipe
from mupscale_cli.cli import documents, explain, options, output
from mupscale_cli.cli.completion import complete_checkpoint, complete_recipe
from mupscale_cli.errors import MupscaleError, OutputError
from mupscale_cli.plan import Request, make_plan
from mupscale_cli.tasks import planning
from mupscale_cli.tasks.check import smallest_factors
from mupscale_cli.tasks.planning import identity_plan
from mupscale_cli.tasks.reading import AS_STORED, Reading
from mupscale_cli.tasks.source import Source, find_source

if TYPE_CHECKING:
    from rich.console import Console

    from mupscale_cli.checkpoints.reading import Checkpoint

app = typer.Typer(help="List, explain, check and draft recipes, which describe architectures.")
RecipeArgument = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="Built-in recipe or recipe file.", autocompletion=complete_recipe)
]


@app.command("list")
def list_recipes(as_json: options.Json = False) -> None:
    """List the built-in recipes."""
    recipes = read_headings()
    if as_json:
        rows = [
            {
                "name": r.name,
                "match": {key: list(values) for key, values in r.keys.items()},
                "about": r.about,
                "axes": list(r.axis_names),
            }
            for r in recipes
        ]
        output.print_document("recipes", {"recipes": rows})
        return
    result = output.table("recipe", "for", "axes", "description")
    for recipe in recipes:
        result.add_row(recipe.name, _matched(recipe), " ".join(recipe.axis_names), recipe.about)
    output.stdout().print(result)


def _named(checkpoint: str | None, reading: Reading, recipe: str, *, headers_only: bool) -> Source | None:
    """Return the checkpoint to compare a recipe with, if the user names one.

    Raises:
        MupscaleError: it cannot be read, or there are options for reading it and no checkpoint.
    """
    if checkpoint is not None:
        return find_source(checkpoint, reading, recipe=recipe, headers_only=headers_only)
    if reading.options:
        raise MupscaleError(f"`{reading.options[0]}` says how to read a checkpoint, and there is none", hint="add CKPT")
    return None


def _matched(recipe: Recipe | Heading) -> str:
    """Return the config keys and values that choose a recipe, for people."""
    return "; ".join(f"{key}: {', '.join(values)}" for key, values in recipe.keys.items()) or "(no config)"


@app.command("show")
@options.with_reading
def show_recipe(
    recipe: RecipeArgument,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CKPT",
            help="Checkpoint to compute each axis's cost for.",
            autocompletion=complete_checkpoint,
        ),
    ] = None,
    reading: Reading = AS_STORED,
    tensor: explain.TensorName = None,
    as_json: options.Json = False,
) -> None:
    """Explain a recipe: its axes, what grows with each, and the layout of every tensor."""
    named = _named(checkpoint, reading, recipe, headers_only=True)
    source = None if named is None else named.checkpoint
    found = load_recipe(recipe, source.config if source else None)
    if tensor is not None:
        if source is None:
            explain.show_rule(found, tensor, as_json=as_json)
        else:
            explain.show_tensor(identity_plan(source, found), tensor, as_json=as_json)
        return
    costs = {} if source is None else _costs(found, source)
    if as_json:
        growing = {axis.name: _growing(found, axis.name) for axis in found.axes}
        output.print_document("recipe", documents.recipe_document(found, growing, costs))
        return
    console = output.stdout()
    console.print(f"{found.name}: {found.about}\nfor {_matched(found)}\nread from {found.file}\n", markup=False)
    axes = output.table("axis", "what it is, what widens it, what grows with it")
    for axis in found.axes:
        axes.add_row(axis.name, escape("\n".join(_axis_lines(found, axis, costs.get(axis.name)))))
    console.print(axes)
    for name, members in found.groups.items():
        console.print(f"\n--axis {name}=K widens {', '.join(members)}", markup=False)
    for stack in found.depths:
        fixed = f"; never as the identity: {found.fixed[stack.name]}" if stack.name in found.fixed else ""
        console.print(f"\n--axis {stack.name}:N adds {stack.about} ({stack.key}){fixed}", markup=False)
    for link in found.links:
        console.print(
            f"\n{link.axis} = {link.text.value}: the config links these axes, so they widen together", markup=False
        )
    if found.tie is not None:
        ways = [
            f"{way:<6} {_WAYS[way]}{' (the default)' if way == found.tie.ways[0] else ''}" for way in found.tie.ways
        ]
        console.print("\nif the readout shares the embedding, --tie chooses what takes its factor 1/k:", markup=False)
        console.print(*(f"  {way}" for way in ways), sep="\n", markup=False)
    console.print()
    rules = output.table("tensors", "layout", "when")
    for rule in found.tensors:
        pattern = rule.text.value
        for choice in rule.choices:
            condition = choice.condition.value if choice.condition else "otherwise" if len(rule.choices) > 1 else ""
            rules.add_row(escape(pattern), escape(choice.text.value), escape(condition))
            pattern = ""
    console.print(rules)
    for name, _, text in found.definitions:
        console.print(f"\n{name} = {text.value}", markup=False)


_WAYS = {
    "fold": "the norm before it",
    "config": "a key of the config, without rounding",
    "untie": "the readout, as a tensor of its own; the model grows by one embedding",
}


def _axis_lines(recipe: Recipe, axis: AxisRule, cost: str | None) -> Iterator[str]:
    """Yield lines that describe an axis."""
    yield f"{axis.about}: {axis.text.value}"
    if axis.name in recipe.fixed:
        yield f"never widened: {recipe.fixed[axis.name]}"
    else:
        by = "--factor, or " if axis.name in recipe.widen else ""
        yield f"{by}--axis {axis.name}=K" + (f"; x2 gives {cost}" if cost else "")
    yield f"grows {', '.join(_growing(recipe, axis.name))}"


def _growing(recipe: Recipe, axis: str) -> list[str]:
    """Return the parts of a model that have an axis, by the last part of their tensors' names."""
    names: dict[str, None] = {}
    for rule in recipe.tensors:
        layouts = [choice.value for choice in rule.choices if isinstance(choice.value, Layout)]
        in_layout = any(
            isinstance(ref, AxisRef) and ref.name == axis for layout in layouts for ref in axis_refs(layout)
        )
        if in_layout or any(axis in part.names for part in rule.pattern.axes):
            stem = rule.pattern.text.removesuffix(".weight").removesuffix(".bias")
            stem = stem.removesuffix(".{weight,bias}").rpartition(".")[2]
            names[re.sub(r"^\{\w+\}", "", stem)] = None
    return list(names)


def _costs(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, str]:
    """Describe the effect of doubling each axis, with its linked axes, on a checkpoint's number of parameters."""
    costs = {}
    for axis in recipe.axis_names:
        factors = smallest_factors(recipe, checkpoint, axis, 2)
        if factors is None:
            continue
        plan = make_plan(recipe, checkpoint.specs, checkpoint.config, Request(axes=factors), None)
        before, after = plan.num_parameters
        linked = ", ".join(name for name in factors if name != axis)
        costs[axis] = f"{after / before:.3g} times the parameters" + (f", together with {linked}" if linked else "")
    return costs


@app.command("coverage")
def show_coverage(
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Only types with a class for this task, such as causal-lm. Repeatable."),
    ] = None,
    draft: Annotated[
        bool, typer.Option("--draft", help="Draft a recipe for every type without one. Takes up to two minutes each.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Compare the model types of the installed transformers with the recipes: recipe, refused with reason, or none."""
    from mupscale_cli.infer.coverage import coverage, with_drafts

    types = coverage(task or ())
    rows = list(with_drafts(types)) if draft else list(types)
    if as_json:
        document = [{"name": r.name, "tasks": list(r.tasks), "outcome": r.outcome, "detail": r.detail} for r in rows]
        output.print_document("coverage", {"types": document})
        return
    result = output.table("type", "outcome", "recipe, axes or reason", "tasks")
    for row in rows:
        tasks = [name for name in row.tasks if not task or name in task]
        result.add_row(row.name, row.outcome, escape(row.detail), " ".join(tasks))
    console = output.stdout()
    console.print(result)
    counts = Counter(row.outcome for row in rows)
    console.print(f"\n{len(rows)} model types: " + ", ".join(f"{n} {each}" for each, n in counts.most_common()))


@app.command("check")
@options.with_reading
def check_recipe(
    recipe: RecipeArgument,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="CKPT",
            help="Checkpoint whose tensors the recipe must describe. Runs no model.",
            autocompletion=complete_checkpoint,
        ),
    ] = None,
    reading: Reading = AS_STORED,
    model_type: Annotated[
        list[str] | None,
        typer.Option(
            "--model-type",
            metavar="TYPE",
            help="Try the recipe on tiny random models of this type. Repeatable. Default: the recipe's own types.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="FILE:FUNCTION",
            help="Your own model class, to try the recipe on a small CKPT.",
        ),
    ] = None,
    run: Annotated[bool, typer.Option(help="Try the recipe on tiny random models. Needs transformers.")] = True,
    as_json: options.Json = False,
) -> None:
    """Check a recipe: its text, against a checkpoint, and by widening small models in every way.

    Exits with 0 if nothing is wrong, 1 if a model shows a mistake, 2 if the recipe cannot be read.
    """
    if model is not None and checkpoint is None:
        raise MupscaleError("`--model` needs a checkpoint to load", hint="add CKPT, a small safetensors checkpoint")
    # Whole files are downloaded from the Hub only to run the model.
    named = _named(checkpoint, reading, recipe, headers_only=model is None)
    source = None if named is None else named.checkpoint
    found = load_recipe(recipe, source.config if source else None)
    console = output.report(as_json=as_json)
    axes, rules = output.counted(len(found.axes), "axis", "axes"), output.counted(len(found.tensors), "rule")
    console.print(f"{found.name}: {axes}, {rules}, no mistakes in the text", markup=False)
    num_tensors = None
    if source is not None:
        num_tensors = len(planning.identity_plan(source, recipe).tensors)
        tensors = output.counted(num_tensors, "tensor")
        console.print(f"{checkpoint}: {tensors}, each matches one rule and has its shape", markup=False)
        if model is None and not model_type:
            output.note("no model was run; `--model-type` tries the recipe on tiny models, `--model` on this one")
    trials = []
    if named is not None and model is not None:
        trials.append(_try_on(recipe, named, str(checkpoint), console, model))
    types = model_type or ([] if source is not None else list(found.model_types))
    for name in types if run else ():
        trials += _try_on_tiny(recipe, name, console)
    if as_json:
        output.print_document("recipe-check", documents.check_document(found, num_tensors, trials))
    if not all(trial.passed for trial in trials):
        raise typer.Exit(1)


def _try_on_tiny(recipe: str, model_type: str, console: Console) -> Iterator[documents.ModelTrial]:
    """Try a recipe on tiny random models of a type, tied and untied."""
    from mupscale_cli.infer.tiny import task_of, tiny_model

    for tied in (False, True):
        with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
            overrides = {"tie_word_embeddings": tied}
            source = tiny_model(model_type, task_of(model_type), overrides=overrides).save(Path(folder))
            label = f"{model_type}, {'tied' if tied else 'untied'}"
            yield _try_on(recipe, source, label, console)


def _try_on(
    recipe: str, source: Path | Source, label: str, console: Console, model: str | None = None
) -> documents.ModelTrial:
    """Try a recipe on one model and print the outcome."""
    from mupscale_cli.tasks.check import check_model

    try:
        checked = check_model(source, recipe, model=model)
    except MupscaleError as error:
        console.print(f"{label}: {error.message}", markup=False, soft_wrap=True)
        return documents.ModelTrial(label, None, error.message)
    for mistake in checked.mistakes:
        console.print(f"{label}: {mistake}", markup=False, soft_wrap=True)
    for trial in checked.trials:
        if trial.problem:
            factors = " ".join(f"{name}={factor}" for name, factor in trial.factors.items())
            console.print(f"{label}: {factors}: {trial.problem}", markup=False, soft_wrap=True)
    wrong = sum(trial.problem is not None for trial in checked.trials)
    for refusal in dict.fromkeys(trial.refusal for trial in checked.trials if trial.refusal):
        console.print(f"{label}: impossible: {refusal}", markup=False, soft_wrap=True)
    widenings = output.counted(sum(trial.refusal is None for trial in checked.trials), "widening")
    outcome = f"{wrong} of {widenings} wrong" if wrong else f"{widenings}, all equal within {checked.worst:.0e}"
    console.print(f"{label}: {outcome}", markup=False)
    return documents.ModelTrial(label, checked)


@app.command("infer")
def infer_recipe(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_TYPE|CONFIG|FILE:FUNCTION",
            help="Model type of transformers, a config.json (or its folder), or your own function from a config to an "
            "nn.Module.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Output file. Default: stdout.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON config of a small model for FILE:FUNCTION. Default: the dict `config` in its module.",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="causal-lm, masked-lm, seq2seq-lm, image-classification or base. Default: the model type's.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
    as_json: options.Json = False,
) -> None:
    """Draft a recipe for an architecture that has none, and test it on tiny random models."""
    from mupscale_cli.infer.infer import infer_target
    from mupscale_cli.infer.tiny import TASKS

    if task is not None and task not in TASKS:
        raise MupscaleError(f"unknown task `{task}`", hint=f"known: {', '.join(TASKS)}")
    if out is not None and out.exists() and not overwrite:
        raise OutputError(f"`{out}` already exists", hint="choose another `--output`, or add `--overwrite`")
    draft = infer_target(target, task, config, note=output.note)
    for axis, reason in draft.fixed.items():
        output.note(f"axis {axis} is fixed: {reason}")
    output.note(f"`--factor` widens {draft.bare_factor}")
    output.note(f"verified on random tiny models in float64: largest relative difference {draft.worst:.1e}")
    document = {
        "target": target,
        "output": None if out is None else str(out),
        "recipe": draft.text,
        "fixed": dict(draft.fixed),
        "worst": draft.worst,
    }
    if out is not None:
        _write_recipe(out, draft.text)
        model = f" --model {target}" if ":" in target else ""
        output.note(f"wrote {out}; use it with `mupscale widen CKPT --recipe {out}{model}`")
    if as_json:
        output.print_document("recipe-draft", document)
    elif out is None:
        sys.stdout.write(draft.text)


def _write_recipe(out: Path, text: str) -> None:
    try:
        partial = out.with_name(f".{out.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        raise OutputError(f"cannot write `{out}`: {error.strerror or error}") from error
