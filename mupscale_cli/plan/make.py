"""Making a plan from a recipe, tensor specs and a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from mupscale_cli.architecture.matching import Match, match_rules
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.architecture.wrappers import Wrapping, find_wrapping
from mupscale_cli.checkpoints.config import CONFIG
from mupscale_cli.checkpoints.libraries import library_of
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import PlanError, RecipeError
from mupscale_cli.plan.axes import find_axes, sizes_from_config, used_axes, varied_sizes
from mupscale_cli.plan.conditions import Values, choose, environment, with_measured_defaults
from mupscale_cli.plan.config import (
    check_covered,
    check_layouts,
    check_requirements,
    check_sizes,
    find_notes,
    widen_config,
    with_changes,
)
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.depth import deepen, map_blocks, stack_axes, stack_sizes, without_stacks
from mupscale_cli.plan.fresh import FreshUnits, eps_factors, isometric_axes
from mupscale_cli.plan.identity import find_writers, stream_axes, sum_norm
from mupscale_cli.plan.methods import MUPSCALE, Method, choose_perturbation
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.plan.request import IDENTITY, Request, grow_axes
from mupscale_cli.plan.rotary import rotary_keys
from mupscale_cli.plan.shards import DEFAULT_SHARD_BYTES, split_into_shards
from mupscale_cli.plan.stated import check_stated
from mupscale_cli.plan.tensors import TensorPlanner, name_prefixes
from mupscale_cli.plan.tied import TIE_KEY, absent_tensors, read_shared, resolve_tie, untie_config
from mupscale_cli.plan.types import ConfigChange, Plan, Shard, SideFile, TensorPlan
from mupscale_cli.plan.units import UnitMap, map_units, rewrite_units

NO_FILES: Mapping[str, Any] = MappingProxyType({})
_MISPLACED = {
    "tiled": "the first units of `{axis}` must stay in front and keep their size, since layers read them by their "
    "number, and this method moves or scales them",
    "adjacent": "the copies of each unit of `{axis}` must stand beside it, since the model joins tensors of several "
    "widths, and this method moves them",
}
_QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")  # the last one is that of MLX


def make_plan(
    recipe: Recipe,
    specs: Sequence[TensorSpec],
    config: Mapping[str, Any] | None,
    request: Request = IDENTITY,
    max_shard_bytes: int | None = DEFAULT_SHARD_BYTES,
    tie: str | None = None,
    *,
    clean_names: bool = False,
    check_config: bool = True,
    method: Method = MUPSCALE,
    perturbation: Perturbation | None = None,
    side_files: Mapping[str, Mapping[str, Any]] = NO_FILES,
) -> Plan:
    """Plan a widening from the headers of a checkpoint.

    Args:
        recipe: recipe of the architecture.
        specs: every tensor of the checkpoint, in the order of writing.
        config: config.json; None if the checkpoint has none.
        request: what to grow, and how far. Default: nothing.
        max_shard_bytes: maximum size of an output file, in bytes of tensor data; None for a single file.
        tie: how to scale a readout that shares the embedding. Default: the first way that the recipe allows.
        clean_names: whether to write the names that the recipe knows, without what training added to them.
        check_config: whether to check that the widened config gives every axis its new size.
        method: method of growing.
        perturbation: noise to add. Default: the method's own.
        side_files: content of the JSON files that `recipe.side_files` names, as far as the checkpoint has them.

    Raises:
        RecipeError: the recipe contradicts the checkpoint.
        PlanError: the checkpoint cannot be widened in this way.
    """
    _refuse_quantized(config, specs)
    wrapping = find_wrapping(recipe, (spec.name for spec in specs), is_stripped=clean_names)
    stored = _stored_names(wrapping, specs)
    plain = [spec if spec.name == name else replace(spec, name=name) for name, spec in zip(stored, specs, strict=True)]
    plan = _make_plan(
        recipe, plain, config, request, tie, wrapping, method, perturbation, side_files, check_config=check_config
    )
    tensors = [_as_stored(tensor, stored, wrapping) for tensor in plan.tensors]
    written = {before.target.name: after.target.name for before, after in zip(plan.tensors, tensors, strict=True)}
    return replace(
        plan,
        shards=_shards(tensors, config, max_shard_bytes),
        omitted=tuple(stored[name] for name in plan.omitted),
        untied=tuple(written[name] for name in plan.untied),
        folded=frozenset(stored.get(name, name) for name in plan.folded),
    )


def _make_plan(
    recipe: Recipe,
    specs: Sequence[TensorSpec],
    config: Mapping[str, Any] | None,
    request: Request,
    tie: str | None,
    wrapping: Wrapping,
    method: Method,
    perturbation: Perturbation | None,
    side_files: Mapping[str, Mapping[str, Any]],
    *,
    check_config: bool,
) -> Plan:
    """Plan a widening to a single file, under the names that the recipe knows."""
    recipe, source_names = with_measured_defaults(recipe, specs), [spec.name for spec in specs]
    check_covered(recipe, config or {}, source_names, tie)
    blocks = map_blocks(recipe, source_names, config, request, stacked=not method.adds_identity)
    stacks = stack_axes(recipe, stack_sizes(recipe, source_names, config), blocks)
    deeper = deepen(recipe, specs, config, blocks)
    specs, config = deeper.specs, deeper.config
    names = [spec.name for spec in specs]
    tie = resolve_tie(recipe, config or {}, names, tie)
    tied_before = (config or {}).get(TIE_KEY)
    absent = absent_tensors(recipe, names) if tie is not None else {}
    shared = absent if tie == "untie" else {}
    if tie == "untie":
        config = untie_config(config or {})
        by_name = {spec.name: spec for spec in specs}
        specs = [*specs, *(replace(by_name[source], name=name) for name, source in shared.items())]
    matches = _match(recipe, [spec.name for spec in specs], absent, config or {})
    values = environment(recipe, config or {}, matches, tie)
    layouts = {name: choose(match.rule.choices, values, match) for name, match in matches.items()}
    used = used_axes(layouts, matches)
    axes = find_axes(recipe, specs, layouts, matches, values, used)

    def sizes(config: Mapping[str, Any]) -> dict[str, int | None]:
        return sizes_from_config(recipe, environment(recipe, config, matches, tie), used)

    stated, restated = widen_config(recipe, config or {}, values, {**axes, **stacks})
    check_stated(recipe, specs, layouts, axes, values, restated)
    varied = partial(varied_sizes, specs, layouts, axes)
    axes = grow_axes(recipe, without_stacks(recipe, request), axes, used, stated, sizes, varied)
    axes = _arrange(recipe, axes, method, layouts)
    fresh = FreshUnits(recipe, axes, layouts, eps_factors(recipe, axes, values))
    fresh.check(matches)
    noise = choose_perturbation(method, perturbation)
    planner = TensorPlanner(fresh, method, noise, name_prefixes(recipe), values)
    omitted = {name for name, choice in layouts.items() if choice.value == "omit"}
    streams = stream_axes(layouts, deeper.names.places)
    inside = {name: layouts[name] for name in deeper.names.places}
    writers = find_writers(inside, streams)
    if blocks and method.adds_identity and (norm := sum_norm(inside, streams)):
        raise PlanError(
            f"cannot add blocks that compute the identity: `{norm}` normalizes the sum behind a block",
            hint="`--method stack` repeats blocks as they are, which computes another function",
        )
    tensors = [
        deeper.names.place(read_shared(plan, shared), spec.name, writers, adds_identity=method.adds_identity)
        for spec in specs
        if spec.name not in omitted
        for plan in planner.plan(spec, matches[spec.name], layouts[spec.name])
    ]
    _refuse_duplicates(tensors)
    new_config, changes = _wide_config(recipe, config, values, {**axes, **stacks}, fresh.eps)
    wide_values = environment(recipe, new_config or {}, matches, tie)
    if new_config is not None and check_config:
        check_requirements(recipe, values, wide_values, axes)
        check_sizes(recipe, wide_values, axes, used)
        check_layouts(layouts, matches, wide_values)
    changes = (*deeper.changes, *changes)
    if tie == "untie":
        changes = (*changes, ConfigChange(TIE_KEY, tied_before, False))
    merged, merged_layouts = deeper.names.parameters(recipe)
    merged_writers = find_writers(merged_layouts, streams)
    return Plan(
        recipe,
        tuple(axes.values()),
        split_into_shards(tensors, None),
        new_config,
        changes,
        tuple(dict.fromkeys(deeper.names.reads.get(name, name) for name in layouts if name in omitted)),
        wrapping,
        tie,
        tuple(
            merged.place(plan, plan.source.name, merged_writers, adds_identity=method.adds_identity)
            for plan in planner.parameters(recipe, specs)
        ),
        used,
        method,
        noise,
        blocks=blocks,
        untied=tuple(shared),
        training_differences=fresh.training_differences(),
        side_files=_side_files(recipe, side_files, map_units(axes.values(), blocks)),
        folded=_folded(recipe, config or {}, matches, layouts) if tie == "fold" else frozenset(),
        notes=find_notes(recipe, wide_values, axes),
    )


def _wide_config(
    recipe: Recipe, config: Mapping[str, Any] | None, values: Values, axes: Mapping[str, Axis], eps: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, tuple[ConfigChange, ...]]:
    """Return the config with its new sizes and the new numbers of units, and its changes."""
    if config is None:
        return None, ()
    widened, changes = widen_config(recipe, config, values, axes, eps, rotary_keys(recipe, axes, config))
    widened_axes = (axis for axis in axes.values() if axis.name in recipe.axis_names)  # blocks have moved already
    moved = rewrite_units(recipe.units_of(None), config, map_units(widened_axes, {}), CONFIG, values)
    return with_changes(widened, moved), (*changes, *moved)


def _match(recipe: Recipe, names: Sequence[str], absent: Iterable[str], config: Mapping[str, Any]) -> dict[str, Match]:
    """Find the rule of every tensor; rules for `absent` ones, which share the data of others, are not missing."""
    matches = match_rules(recipe, [*dict.fromkeys((*names, *absent))], config)
    return {name: matches[name] for name in names}


def _folded(
    recipe: Recipe, config: Mapping[str, Any], matches: Mapping[str, Match], layouts: Mapping[str, Choice[Any]]
) -> frozenset[str]:
    """Return the tensors whose layout would be another one if the readout had weights of its own."""
    untied = environment(recipe, untie_config(config), matches, "untie")
    return frozenset(
        name for name, match in matches.items() if choose(match.rule.choices, untied, match) is not layouts[name]
    )


def _shards(
    tensors: Sequence[TensorPlan], config: Mapping[str, Any] | None, max_bytes: int | None
) -> tuple[Shard, ...]:
    library = library_of(config)
    return split_into_shards(tensors, max_bytes if library.has_shards else None, library.shard_pattern)


def _side_files(
    recipe: Recipe, contents: Mapping[str, Mapping[str, Any]], maps: Mapping[str, UnitMap]
) -> dict[str, SideFile]:
    changes = {file: rewrite_units(recipe.units_of(file), contents[file], maps, file) for file in contents}
    return {
        file: SideFile(with_changes(contents[file], changed), changed) for file, changed in changes.items() if changed
    }


def _stored_names(wrapping: Wrapping, specs: Iterable[TensorSpec]) -> dict[str, str]:
    """Map the plain name of every tensor to its stored name, in their order."""
    stored: dict[str, str] = {}
    for spec in specs:
        other = stored.setdefault(wrapping.plain(spec.name), spec.name)
        if other != spec.name:
            raise PlanError(
                f"`{other}` and `{spec.name}` are the same tensor of a model that was wrapped for training",
                hint="keep one of them, and save the checkpoint again",
            )
    return stored


def _as_stored(tensor: TensorPlan, stored: Mapping[str, str], wrapping: Wrapping) -> TensorPlan:
    """Return the plan of a tensor under the names that it has in the files."""
    name = stored[tensor.source.name]
    written = wrapping.wrap(tensor.target.name, like=name)
    if (name, written) == (tensor.source.name, tensor.target.name):
        return tensor
    return tensor.renamed(replace(tensor.source, name=name), written)


def _refuse_quantized(config: Mapping[str, Any] | None, specs: Iterable[TensorSpec]) -> None:
    for key in _QUANTIZED_KEYS:
        if config and config.get(key):
            if all(DTYPES[spec.dtype].kind == "float" for spec in specs):
                raise PlanError(
                    f"config.json has a `{key}`, but no tensor is quantized",
                    hint=f"if the weights were dequantized or merged, remove `{key}` from config.json; programs that "
                    "load them would quantize them again",
                )
            raise PlanError(
                f"cannot widen quantized weights (config.json has a `{key}`): their packed elements are not units",
                hint="dequantize the model first (of MLX: `mlx_lm.convert --hf-path DIR -d --mlx-path OUT`), or widen "
                "the checkpoint that it was quantized from; see `mupscale help limits`",
            )


def _refuse_partial(axes: Iterable[Axis], method: Method) -> None:
    for axis in axes:
        if axis.fresh and not method.grows_to_any_size:
            raise PlanError(
                f"`--method {method.name}` makes no fresh units, which `{axis.name}` needs to grow from {axis.size} to "
                f"{axis.wide_size}",
                hint="omit `--method`" + ("" if axis.is_spread else ", or use a whole factor"),
            )


def _arrange(
    recipe: Recipe, axes: Mapping[str, Axis], method: Method, layouts: Mapping[str, Choice[Any]]
) -> dict[str, Axis]:
    """Return the axes with the method's positions of copies.

    Raises:
        PlanError: the method makes no fresh units, or does not keep the order that the recipe demands.
    """
    _refuse_partial(axes.values(), method)
    axes = {name: replace(axis, arrangement=method) for name, axis in axes.items()}
    axes = isometric_axes(recipe, axes, layouts) if method.is_isometric else axes
    for axis in axes.values():
        if not axis.keeps_order:
            raise PlanError(_MISPLACED[axis.order].format(axis=axis.name), hint="omit `--spread` and `--method`")
    return axes


def _refuse_duplicates(tensors: Iterable[TensorPlan]) -> None:
    seen: dict[str, TensorPlan] = {}
    for tensor in tensors:
        other = seen.setdefault(tensor.target.name, tensor)
        if other is not tensor:
            raise RecipeError(
                f"`{other.source.name}` and `{tensor.source.name}` would both become `{tensor.target.name}`"
            )
