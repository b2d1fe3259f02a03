"""Choose a recipe and plan a widening before any tensor is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mupscale_cli.architecture.loading import load_recipe, matched_keys, matched_values, read_draft, recipe_for
from mupscale_cli.architecture.refusals import refusal_of
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.engine.events import SILENT, Events
from mupscale_cli.engine.memory import comparison_bytes
from mupscale_cli.errors import MupscaleError, OutputError, PlanError, RecipeError, install_extra
from mupscale_cli.infer.drafting import draft_for
from mupscale_cli.plan import Amount, Plan, Request, Shard, Size, TensorPlan, make_plan
from mupscale_cli.plan.advice import plan_or_advise
from mupscale_cli.plan.depth import only_stacks
from mupscale_cli.plan.goal import Goal
from mupscale_cli.plan.proposals import propose
from mupscale_cli.plan.tensors import name_prefixes
from mupscale_cli.tasks.goal import goal_stem, read_goal
from mupscale_cli.tasks.modules import with_modules
from mupscale_cli.tasks.options import WidenOptions, called_with
from mupscale_cli.tasks.recognition import fitting_recipes, identified_recipe, stored_config
from mupscale_cli.tasks.source import Source, find_source
from mupscale_cli.text import count_text, listed, shortened, shown
from mupscale_cli.verification.early import require_fitting

_MAX_NAMED = 5  # recipes in a message
_MAX_REASON = 200  # characters of a reason in a message
_log = logging.getLogger(__name__)  # `-v` shows it


def choose_recipe(checkpoint: Checkpoint, name: str | Path | Recipe | None = None, *, infer: bool = True) -> Recipe:
    """Choose the recipe for a checkpoint by name, else by its config, else by its tensors.

    Args:
        checkpoint: the checkpoint.
        name: name or file of the recipe, or the recipe itself.
        infer: whether to draft a recipe for a model type of transformers that has none.

    Raises:
        RecipeError: no recipe fits, or several do, or none can be drafted.
    """
    config = checkpoint.config or {}
    if isinstance(name, Recipe):
        return name
    if name is not None:
        _log.info("recipe %s (requested)", name)
        return load_recipe(name, config)
    if checkpoint.trained is not None and (own := checkpoint.trained.layout.recipe) is not None:
        _log.info("recipe %s (%s)", own, checkpoint.trained.layout.title)
        return load_recipe(own, config)
    key = next((key for key in matched_keys() if config.get(key) is not None), None)
    if key is not None:
        value = config[key] if isinstance(config[key], str) else shown(config[key], 40)
        built_in = recipe_for(config)
        if built_in is not None:
            _log.info("recipe %s (config.json: `%s: %s`)", built_in, key, value)
            return load_recipe(built_in, config)
        drafted = _draft(checkpoint, value) if infer and key == "model_type" else None
        if drafted is None:
            raise _no_recipe(key, value, infer=infer)
        return drafted
    identified = identified_recipe(checkpoint)
    if identified is not None:
        _log.info("recipe %s (the only one with rules for these tensor names)", identified.name)
        return identified
    raise _unknown_recipe(checkpoint, fitting_recipes(checkpoint))


def _draft(checkpoint: Checkpoint, model_type: str) -> Recipe | None:
    """Return a drafted recipe: the one that the checkpoint was made by, or a new one; None if none can be drafted.

    Raises:
        RecipeError: drafting fails.
    """
    recipe = (checkpoint.record or {}).get("recipe")
    text = recipe.get("text") if isinstance(recipe, dict) else None
    if isinstance(text, str):
        _log.info("recipe drafted for `%s` (mupscale.json)", model_type)
        return read_draft(text, model_type)
    if refusal_of(model_type) is not None:
        return None
    try:
        return draft_for(checkpoint.config or {})
    except MupscaleError as error:  # its excerpt is for authors of recipes
        reason = shortened(error.message, _MAX_REASON)
        first = f"{error.hint}; " if error.hint and not error.excerpt else ""
        raise RecipeError(
            f"no recipe for the model type `{model_type}`, and none could be drafted: {reason}",
            hint=f"{first}the checkpoint is not at fault: mupscale does not know this architecture, and experiments "
            "with tiny models did not find how it widens; `mupscale recipes infer PATH/config.json -o "
            f"{model_type}.yaml` repeats them and shows all details, and `--recipe NAME` uses the recipe of an "
            "architecture of the same shape",
        ) from error


def _no_recipe(key: str, value: str, *, infer: bool) -> RecipeError:
    """Return the error for a checkpoint whose model type no built-in recipe describes."""
    if (refusal := refusal_of(value)) is not None:
        message = f"no axis of `{value}` widens exactly: {refusal.part}: {refusal.why}"
        return RecipeError(message, hint=f"instead: {refusal.instead}")
    near = get_close_matches(value, matched_values(key), n=1, cutoff=0.8)
    if not infer:
        draft = "omit `--no-infer`, so that one is drafted"
    elif find_spec("transformers") is None:
        draft = f"one is drafted if it is a type of transformers: {install_extra('hf')}"
    else:  # transformers does not have it
        draft = f"draft one by its class: `mupscale recipes infer FILE:FUNCTION -o {value}.yaml`"
    return RecipeError(
        f"no recipe for the {key.strip('_').replace('_', ' ')} `{value}`"
        + (f"; did you mean `{near[0]}`?" if near else ""),
        hint=f"{draft}; or reuse a built-in recipe of the same shape, for instance `--recipe llama`",
    )


def _unknown_recipe(checkpoint: Checkpoint, fitting: Sequence[Recipe]) -> RecipeError:
    """Return the error for a checkpoint whose config does not name its model type."""
    names = [recipe.name for recipe in fitting]
    types = [each for recipe in fitting for each in recipe.model_types]
    fits = f"its tensors fit {listed(names, _MAX_NAMED)}" if names else "no recipe fits its tensors"
    has_config = stored_config(checkpoint) is not None
    lacks = (
        f"`{checkpoint.config_file}` lacks `model_type`"
        if has_config
        else f"`{checkpoint.display_name}` has no config.json"
    )
    example = types[0] if types else "NAME"
    if not names:
        hint = (
            "for a network of your own, draft a recipe (`mupscale recipes infer FILE:FUNCTION -o net.yaml`) and pass "
            "`--recipe net.yaml --model FILE:FUNCTION`; for a type of transformers, state it: "
            f"`--set model_type={example}`"
        )
    elif has_config:
        hint = (
            f"state the type, for instance `--set model_type={example}`; for a class of your own, name the recipe: "
            f"`--recipe {names[0]} --model FILE:FUNCTION`"
        )
    else:
        hint = (
            f"name its recipe, for instance `--recipe {names[0]}`, and for a class of your own also "
            "`--model FILE:FUNCTION`; or put config.json beside the weights"
        )
    return RecipeError(f"{lacks}, and {fits}", hint=hint)


def require_same_recipe(recipe: Recipe, config: Mapping[str, Any] | None) -> None:
    """Check that a user's recipe, and the recipes that it extends, still have the content that they were read with.

    Raises:
        RecipeError: a file was modified, replaced or removed.
    """
    if recipe.path is None:
        return
    try:
        is_same = load_recipe(recipe.path, config).digest == recipe.digest
    except RecipeError:
        is_same = False
    if not is_same:
        raise RecipeError(f"`{recipe.path}` changed while it was being used", hint="widen again")


@called_with(WidenOptions)
def plan_widening(checkpoint: str | Path | Source, options: WidenOptions) -> Plan:
    """Plan a widening from headers and config alone; write nothing and do not import torch.

    Args:
        checkpoint: a safetensors file, a model directory, or a Hub id.
        options: the fields of `WidenOptions`, as separate arguments, as for `widen`.

    Raises:
        MupscaleError: the user can fix the problem.

    Example:
        >>> plan = plan_widening("tiny", factor=2)  # doctest: +SKIP
        >>> plan.num_parameters  # doctest: +SKIP
        (120640, 471424)
    """
    return plan_source(find_source(checkpoint, options.reading, recipe=options.recipe, headers_only=True), options)


def plan_source(source: Source, options: WidenOptions) -> Plan:
    """Plan the widening of an opened checkpoint.

    Raises:
        MupscaleError: the user can fix the problem.
    """
    return plan_shapes(source, options)[0]


def plan_shapes(source: Source, options: WidenOptions) -> tuple[Plan, ...]:
    """Plan the widening of an opened checkpoint; several shapes, best first, if only the number of parameters is given.

    Raises:
        MupscaleError: the user can fix the problem.
    """
    checkpoint = source.checkpoint
    recipe = choose_recipe(checkpoint, options.recipe, infer=options.infer)
    config, specs, method = checkpoint.config, checkpoint.specs, options.growth
    shard_size = None if checkpoint.is_file else options.max_shard_size
    side_files = checkpoint.read_side_files(recipe.side_files)

    def plan(request: Request, tie: str | None = options.tie) -> Plan:
        made = make_plan(
            recipe,
            specs,
            config,
            request,
            shard_size,
            tie,
            clean_names=options.clean_names,
            method=method[0],
            perturbation=method[1],
            side_files=side_files,
        )
        _check_noisy(made)
        return with_modules(in_kind(made, checkpoint), checkpoint)

    if options.params is not None:
        narrow = make_plan(
            recipe, specs, config, only_stacks(recipe, options.request), tie=options.tie, method=method[0]
        )
        plans = propose(narrow, options.params, options.request, plan)
    elif options.to is not None:
        goal = _read_goal(options.to, recipe, checkpoint)
        narrow = make_plan(recipe, specs, config, tie=options.tie)
        sizes = goal.sizes(narrow, config or {}, options.request.axes.keys())
        tie = options.tie or ("untie" if goal.unties(narrow) else None)
        request = replace(options.request, sizes=sizes)
        grown = plan_or_advise(request, partial(plan, tie=tie), str(options.to))
        plans = (replace(grown, goal=goal.compare(config or {}, grown.config or {})),)
    else:
        plans = (plan_or_advise(options.request, plan),)
    _check_grown(plans[0], options.request, checkpoint)
    _log_reasons(plans[0])
    return plans


def require_class(source: Source, plan: Plan, options: WidenOptions, events: Events = SILENT) -> bool:
    """Refuse before the first byte what verification would find after the last: a class that does not fit the plan.

    Args:
        source: the source; only its headers are read.
        plan: plan of its widening.
        options: options of the widening. Without verification, nothing is imported or refused.
        events: receive the progress.

    Returns:
        Whether the class fits; False if that is unknown.

    Raises:
        MupscaleError: the class refuses the wide config, or has other tensors than the plan.
    """
    return options.verify and require_fitting(source.checkpoint, plan, options.verification, events)


def in_kind(plan: Plan, checkpoint: Checkpoint) -> Plan:
    """Return the plan with the container that a trainer's checkpoint keeps its weights in, instead of shards."""
    trained = checkpoint.trained
    if trained is None:
        return plan
    name = trained.path.name if checkpoint.is_file else trained.path.relative_to(checkpoint.path).as_posix()
    return replace(plan, shards=(Shard(name, _shared(plan, trained.shared)),))


def _shared(plan: Plan, first: Mapping[str, str]) -> tuple[TensorPlan, ...]:
    """Return the plans of tensors; those that share their bytes still do, unless the plan unties them."""
    if plan.tie in (None, "untie"):
        return plan.tensors
    by_name = {tensor.source.name: tensor for tensor in plan.tensors}
    return tuple(
        replace(
            by_name[first[tensor.source.name]],
            source=tensor.source,
            target=replace(tensor.target, shape=by_name[first[tensor.source.name]].target.shape),
        )
        for tensor in plan.tensors
    )


def _check_grown(plan: Plan, request: Request, checkpoint: Checkpoint) -> None:
    """Check that every requested axis grows.

    Raises:
        PlanError: the checkpoint lacks an axis, or nothing grows.
    """
    recipe = plan.recipe
    for name, amount in request.axes.items():
        members = recipe.groups.get(name, (name,) if name in recipe.axis_names else ())
        if amount != 1 and members and not plan.used.intersection(members):
            raise PlanError(f"no tensor of `{checkpoint.display_name}` has the axis `{name}`")
    if not plan.factors and not plan.blocks:
        if recipe.fixed.keys() >= plan.used:
            raise PlanError(
                f"`{recipe.name}` cannot become wider: {next(iter(recipe.fixed.values()))}",
                hint="add blocks, for instance with `--layers N`" if recipe.depths else None,
            )
        raise PlanError(
            "nothing is widened: every axis keeps its size",
            hint="choose a larger target" if plan.goal else "use `--factor 2`, or `--axis NAME=2` for a single axis",
        )


def _check_noisy(plan: Plan) -> None:
    """Check that every pattern of `--noise-on` selects a tensor.

    Raises:
        PlanError: a pattern selects none that gets noise.
    """
    if plan.perturbation is None:
        return
    prefixes = name_prefixes(plan.recipe)
    names = [tensor.noise.name for tensor in plan.tensors if tensor.noise is not None]
    spared = "gains, biases and tensors that are not widened get none"
    if plan.perturbation.mode == "preserving":  # nothing sums their copies, so nothing could cancel
        spared += "; with `--noise-mode preserving`, tensors without widened inputs, such as embeddings, get none"
    for pattern in plan.perturbation.on:
        alone = replace(plan.perturbation, on=(pattern,))
        if not any(alone.covers(name, prefixes) for name in names):
            raise PlanError(
                f"`--noise-on {pattern}` selects no tensor that gets noise",
                hint=f"{spared}; `mupscale inspect CHECKPOINT` lists the names",
            )


def _read_goal(name: str | Path, recipe: Recipe, checkpoint: Checkpoint) -> Goal:
    """Read the model whose sizes to take, and check that it has the source's architecture."""
    if checkpoint.config is None:
        raise PlanError(
            f"`{checkpoint.display_name}` has no config.json to compare with that of `{name}`",
            hint="choose sizes with `--axis NAME:SIZE`",
        )
    return read_goal(name).for_recipe(recipe, checkpoint.config)


def _log_reasons(plan: Plan) -> None:
    """Log the reasons for the plan's decisions."""
    for axis in plan.axes:
        if axis.ratio == 1 and axis.name in plan.recipe.fixed:
            _log.info("axis %s is not widened: %s", axis.name, plan.recipe.fixed[axis.name])
        elif axis.ratio == 1 and axis.name not in plan.recipe.widen:
            _log.info("axis %s is not widened by a bare factor; `--axis %s=K` widens it", axis.name, axis.name)
    if note := plan.names_note:
        _log.info("%s", note)
    if plan.tie is not None:
        _log.info("the readout shares the embedding; its factor is applied as by `--tie %s`", plan.tie)
    for tensor in plan.tensors:
        _log.debug("%s: rule %s, layout %s", tensor.target.name, tensor.rule, tensor.layout)


def identity_plan(checkpoint: Checkpoint, recipe: str | Path | Recipe | None = None) -> Plan:
    """Plan a checkpoint with every factor 1, to see how a recipe describes it.

    Raises:
        MupscaleError: no recipe fits, or the recipe contradicts the checkpoint.
    """
    return make_plan(choose_recipe(checkpoint, recipe), checkpoint.specs, checkpoint.config, max_shard_bytes=None)


def comparison_memory(plan: Plan, model: str | None) -> float:
    """Return the memory that comparing both models takes, in bytes; the weights of a user-defined model are loaded."""
    largest = max((tensor.target.num_elements for tensor in plan.tensors), default=0)
    return comparison_bytes(largest if model is None else max(plan.num_parameters))


def output_path(source: Source, options: WidenOptions) -> Path:
    """Return the output path. Default: `NAME-x4` next to the input; in the current folder for a model on the Hub.

    Raises:
        OutputError: the path names no folder or file that could be made.
    """
    if options.output is not None:
        output = Path(options.output)
        if output.name in ("", ".."):
            raise OutputError(f"`{output}` is not a name for an output", hint="name a new folder or file with `-o`")
        return output
    request = options.request
    bare = [f"x{_amount_text(request.factor)}"] if request.factor is not None else []
    target = [] if options.to is None else [f"to-{goal_stem(options.to)}"]
    target += [] if options.params is None else [count_text(options.params).replace(" ", "")]
    axes = [f"{name}{_amount_text(amount)}" for name, amount in request.axes.items()]
    name = f"{source.stem}-{'-'.join(bare + target + axes)}"
    return source.default_directory / (f"{name}{source.suffix}" if source.checkpoint.is_file else name)


def _amount_text(amount: Amount) -> str:
    return str(amount.units) if isinstance(amount, Size) else f"{float(amount):.6g}"
