"""Everything that a widening decides: Recipe x tensor specs x factors -> Plan. No torch, no data."""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from huggingface_hub import split_state_dict_into_shards_factory

from mupscale_cli.errors import ConfigError, PlanError, RecipeError
from mupscale_cli.language import (
    AxisRef,
    Dim,
    Expression,
    LanguageError,
    Layout,
    NameAxis,
    axis_refs,
    evaluate,
    expand_name,
    look_up,
    shown,
    suggest,
)
from mupscale_cli.layout import DimMap, LayoutError, keep_dims, map_dim, power_scale, size_of, solve_size
from mupscale_cli.maps import Axis
from mupscale_cli.matching import Match, match_rules
from mupscale_cli.methods import MUPSCALE, Method, perturbation_of
from mupscale_cli.perturbation import Noise, Perturbation
from mupscale_cli.recipe import TIES, Choice, Link, Recipe
from mupscale_cli.specs import DTYPES, TensorSpec

T = TypeVar("T")
Values = dict[str, Any]
DEFAULT_SHARD_BYTES = 5 * 10**9
MAX_FACTOR = 4096
_MAX_TENSORS = 10**6  # that one becomes, where axes count tensors
_TIE_KEY = "tie_word_embeddings"
_QUANTIZED_KEYS = ("quantization_config", "compression_config")


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor of the output is made: W' = c R(W), design.md section 2.

    Attributes:
        source: the tensor that is read.
        target: the tensor that is written.
        rule: the pattern of the rule that it follows.
        layout: the layout of that rule, as text.
        dims: the map of each dimension.
        scale: of the whole tensor, beyond what its summed axes divide by.
        offset: o where the layer uses o + w; the scale acts on o + w.
        name_copies: how many tensors the source becomes, where an axis is in the name.
        piece: which share of the split this tensor is, where the layer sums over such an axis.
        name_pieces: into how many shares the axes in the name split an element.
        first_only: the first share takes the whole element and the others are zero.
        noise: what is added in the end, if anything.
        shrink: by what the source is multiplied beyond c, by methods that do not keep the function.
        fresh: the value of elements that copy none, before noise.
    """

    source: TensorSpec
    target: TensorSpec
    rule: str
    layout: str
    dims: tuple[DimMap, ...]
    scale: float = 1.0
    offset: int = 0
    name_copies: int = 1
    piece: int = 0
    name_pieces: int = 1
    first_only: bool = False
    noise: Noise | None = None
    shrink: float = 1.0
    fresh: float = 0.0

    @cached_property
    def parts(self) -> tuple[tuple[float, int], ...]:
        """Coefficient c and multiplicity m of each part of the tensor, distinct ones only.

        A tensor has one part unless it concatenates segments that are widened differently.
        """
        strips = itertools.product(*(dim.strips for dim in self.dims))
        return tuple(dict.fromkeys(
            (
                self.scale * math.prod(strip.scale for strip in combination)
                / (self.name_pieces * math.prod(strip.pieces for strip in combination)),
                self.name_copies * math.prod(strip.multiplicity for strip in combination),
            )
            for combination in strips
        ))  # fmt: skip

    @property
    def coefficient(self) -> float | None:
        """c, what one copy of an element is multiplied by; None where parts differ."""
        return self.parts[0][0] if len({c for c, _ in self.parts}) == 1 else None

    @property
    def multiplicity(self) -> int | None:
        """m, how many copies an element has; None where parts differ."""
        return self.parts[0][1] if len({m for _, m in self.parts}) == 1 else None

    @property
    def is_changed(self) -> bool:
        return self.source.shape != self.target.shape or self.is_scaled or self.name_copies > 1

    @property
    def is_scaled(self) -> bool:
        return self.shrink != 1 or any(c != 1 for c, _ in self.parts)

    @property
    def is_rounded(self) -> bool:
        """Whether scaling rounds: splitting over copies is exact, other scales than 2^n are not."""
        scales = {self.scale * math.prod(strip.scale for strip in combination)
                  for combination in itertools.product(*(dim.strips for dim in self.dims))}  # fmt: skip
        return any(scale != 1 and (self.offset or math.frexp(scale)[0] != 0.5) for scale in scales)


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file and its tensors, in the order of their data."""

    file: str
    tensors: tuple[TensorPlan, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.target.num_bytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A key of config.json before and after; `before` is None where the key was absent."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Plan:
    """A complete widening. After it there are no decisions, only copying.

    Attributes:
        recipe: what it follows.
        axes: every axis with its factor.
        shards: the output files.
        config: the widened config, None where the checkpoint has none.
        config_changes: what differs from the source's config.
        omitted: tensors that the recipe leaves out.
        tie: for a readout that shares the embedding, where its factor went: `fold`, `config` or `untie`.
        parameters: of the reference model, as far as they are tensors of the checkpoint in another
            form: experts that it keeps together and saves one by one.
        used: the axes that some tensor has.
        method: by which it grows.
        perturbation: the noise that is added, None where there is none.
    """

    recipe: Recipe
    axes: tuple[Axis, ...]
    shards: tuple[Shard, ...]
    config: dict[str, Any] | None
    config_changes: tuple[ConfigChange, ...]
    omitted: tuple[str, ...]
    tie: str | None = None
    parameters: tuple[TensorPlan, ...] = ()
    used: frozenset[str] = frozenset()
    method: Method = MUPSCALE
    perturbation: Perturbation | None = None

    @cached_property
    def tensors(self) -> tuple[TensorPlan, ...]:
        return tuple(tensor for shard in self.shards for tensor in shard.tensors)

    @property
    def factors(self) -> dict[str, int]:
        """The factor of every axis that is widened."""
        return {axis.name: axis.factor for axis in self.axes if axis.factor > 1}

    @property
    def num_bytes(self) -> int:
        """Bytes of tensor data in the output."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def keeps_function(self) -> bool:
        """Whether the wide model is to compute what the narrow one does."""
        return self.method.is_copying and (self.perturbation is None or self.perturbation.mode == "preserving")

    @property
    def trains_alike(self) -> bool:
        """Whether the unperturbed wide model takes the steps that the narrow one would take."""
        is_random = self.method.arrangement.kind == "random"
        return self.method.is_copying and not any(is_random and a.uneven and a.factor > 1 for a in self.axes)

    @property
    def num_parameters(self) -> tuple[int, int]:
        """Elements of floating-point tensors before and after."""
        floats = [tensor for tensor in self.tensors if DTYPES[tensor.target.dtype].kind == "float"]
        sources = {tensor.source.name: tensor.source for tensor in floats}
        return sum(spec.num_elements for spec in sources.values()), sum(t.target.num_elements for t in floats)

    @property
    def untied(self) -> tuple[str, ...]:
        """Tensors of the output that share another one's data in the source."""
        if self.tie != "untie":
            return ()
        return tuple(t.target.name for t in self.tensors if t.target.name != t.source.name and t.name_copies == 1)

    @property
    def rounded(self) -> tuple[TensorPlan, ...]:
        """Tensors whose scale is not exact in their data type."""
        return tuple(tensor for tensor in self.tensors if tensor.is_rounded)


# Factors --------------------------------------------------------------------------------------


def resolve_factors(recipe: Recipe, factor: int | None, axes: Mapping[str, int]) -> dict[str, int]:
    """The factor of every axis: `factor` for those that the recipe widens, then the named ones.

    Raises:
        PlanError: an unknown or fixed axis, a factor below 1, nothing widened, or linked axes
            moved apart.
    """
    for name, value in (("--factor", factor), *((f"--axis {axis}", value) for axis, value in axes.items())):
        if value is not None and not 1 <= value <= MAX_FACTOR:
            raise PlanError(f"`{name}` is {_number(value)}; a factor is a whole number from 1 to {MAX_FACTOR}")
    for name in axes:
        if name not in recipe.axis_names and name not in recipe.groups:
            near = suggest(name, (*recipe.groups, *recipe.axis_names))
            raise PlanError(
                f"`{recipe.name}` has no axis `{name}`",
                hint=f"{near + '; ' if near else ''}`mupscale recipes show {recipe.name}` explains the axes",
            )
    factors = dict.fromkeys(recipe.axis_names, 1)
    if factor is not None:
        factors.update(dict.fromkeys(recipe.widen, factor))
    for name, members in recipe.groups.items():
        if name in axes:
            factors.update(dict.fromkeys(members, axes[name]))
    factors.update({name: value for name, value in axes.items() if name not in recipe.groups})
    for name, reason in recipe.fixed.items():
        if factors[name] != 1:
            raise PlanError(f"the axis `{name}` of `{recipe.name}` cannot be widened: {reason}")
    if all(value == 1 for value in factors.values()):
        raise PlanError(
            "nothing is widened: the factor is 1 on every axis",
            hint="give `--factor 2`, or `--axis NAME=2` for one axis",
        )
    for link in recipe.links:
        product = math.prod(factors[name] for name in link.product)
        if factors[link.axis] != product:
            terms = " x ".join(f"{name} {factors[name]}" for name in link.product)
            raise PlanError(
                f"linked axes are moved apart: in `{recipe.name}`, {link.axis} is {link.text.value}, "
                f"but the factors are {link.axis} {factors[link.axis]} against {terms}",
                hint=_together(recipe, factors, link),
            )
    return factors


def _together(recipe: Recipe, factors: Mapping[str, int], link: Link) -> str:
    """Factors that the link allows, as near as can be to those that were asked for."""
    product = math.prod(factors[name] for name in link.product)
    changed = dict(factors)
    movable = next((name for name in link.product if name not in recipe.fixed), link.axis)
    if product > 1 or movable == link.axis:
        changed[link.axis] = product
    else:
        changed[movable] = factors[link.axis]
    asked = " ".join(f"--axis {name}={factor}" for name, factor in changed.items() if factor > 1)
    return f"for instance `{asked}`" if asked else f"leave {link.axis} as it is"


# The plan -------------------------------------------------------------------------------------


def make_plan(
    recipe: Recipe,
    specs: Sequence[TensorSpec],
    config: Mapping[str, Any] | None,
    factors: Mapping[str, int],
    max_shard_bytes: int | None = DEFAULT_SHARD_BYTES,
    tie: str | None = None,
    *,
    check_config: bool = True,
    method: Method = MUPSCALE,
    perturbation: Perturbation | None = None,
) -> Plan:
    """Plan a widening from headers alone.

    Args:
        recipe: the architecture.
        specs: every tensor of the checkpoint, in the order in which they are to be written.
        config: config.json, None where there is none.
        factors: of every axis, as `resolve_factors` gives them.
        max_shard_bytes: largest output file, in bytes of tensor data; None for a single file.
        tie: what to do about a readout that shares the embedding; the recipe's first way if not given.
        check_config: whether the widened config must give every axis its new size.
        method: by which it grows.
        perturbation: noise to add; the method's own if not given.

    Raises:
        RecipeError: the recipe and the checkpoint contradict one another.
        PlanError: the checkpoint cannot be widened as asked.
    """
    _refuse_quantized(config)
    names = [spec.name for spec in specs]
    tie = _resolve_tie(recipe, config or {}, names, tie)
    said_tied = (config or {}).get(_TIE_KEY)
    shared = _untied(recipe, names) if tie == "untie" else {}
    if tie == "untie":
        config = _with_untied(config or {})
        by_name = {spec.name: spec for spec in specs}
        specs = [*specs, *(replace(by_name[source], name=name) for name, source in shared.items())]
    matches = match_rules(recipe, [spec.name for spec in specs])
    values = _environment(recipe, config or {}, matches, tie)
    layouts = {name: _choose(match.rule.choices, values, match) for name, match in matches.items()}
    used = _used_axes(layouts, matches)
    axes = _axes(recipe, specs, layouts, matches, values, factors, used)
    axes = {name: replace(axis, arrangement=method.arrangement) for name, axis in axes.items()}
    noise = perturbation_of(method, perturbation)
    planner = _TensorPlanner(axes, method, noise, _prefixes(recipe))
    omitted = tuple(name for name, choice in layouts.items() if choice.value == "omit")
    tensors = [
        _reading(plan, shared) for spec in specs if spec.name not in omitted
        for plan in planner.plan(spec, matches[spec.name], layouts[spec.name])
    ]  # fmt: skip
    _refuse_duplicates(tensors)
    new_config, changes = _widen_config(recipe, config, values, axes) if config is not None else (None, ())
    if new_config is not None and check_config:
        wide_values = _environment(recipe, new_config, matches, tie)
        _check_sizes(recipe, wide_values, axes, used)
        _check_layouts(layouts, matches, wide_values)
    if tie == "untie":
        changes = (*changes, ConfigChange(_TIE_KEY, said_tied, False))
    return Plan(
        recipe, tuple(axes.values()), split_into_shards(tensors, max_shard_bytes), new_config, changes, omitted,
        tie, planner.parameters(recipe, specs), used, method, noise,
    )  # fmt: skip


def _refuse_quantized(config: Mapping[str, Any] | None) -> None:
    for key in _QUANTIZED_KEYS:
        if config and config.get(key):
            raise PlanError(
                f"config.json has a `{key}`: the weights are quantized and packed, "
                f"so rows and columns are not its units",
                hint="dequantize the model first, or widen the checkpoint that it was quantized from",
            )


def _refuse_duplicates(tensors: Iterable[TensorPlan]) -> None:
    seen: dict[str, TensorPlan] = {}
    for tensor in tensors:
        other = seen.setdefault(tensor.target.name, tensor)
        if other is not tensor:
            raise RecipeError(
                f"`{other.source.name}` and `{tensor.source.name}` would both become `{tensor.target.name}`"
            )


def _resolve_tie(recipe: Recipe, config: Mapping[str, Any], names: Sequence[str], asked: str | None) -> str | None:
    """What is done about a readout that shares the embedding; None where there is none."""
    if asked is not None and asked not in TIES:
        raise PlanError(f"`--tie {asked}`: there is no such way", hint=f"known: {', '.join(TIES)}")
    rule = recipe.tie
    shares = rule is not None and _evaluate(rule.when, _environment(recipe, config, names), rule.text.error)
    if rule is None or not shares:
        if asked is not None:
            raise PlanError(
                f"`--tie {asked}`: the readout of this checkpoint does not share the embedding, so it takes its factor "
                "itself"
            )
        return None
    if asked is not None and asked not in rule.ways:
        raise PlanError(
            f"`--tie {asked}` is not possible with `{recipe.name}`",
            hint=f"this architecture allows: {', '.join(rule.ways)}",
        )
    return asked or rule.ways[0]


def _untied(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """The tensors to write where the checkpoint has one for several, and whose data they take."""
    assert recipe.tie is not None
    present = frozenset(names)
    found = {}
    for prefixes in recipe.prefixes:
        for name, source in recipe.tie.shares:
            if source.format_map(prefixes) in present and name.format_map(prefixes) not in present:
                found[name.format_map(prefixes)] = source.format_map(prefixes)
    return found


def _with_untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says that embedding and readout are two tensors, in every section that said something of it."""
    nested = {key: _with_untied(value) for key, value in config.items()
              if isinstance(value, Mapping) and _TIE_KEY in value}  # fmt: skip
    return {**config, **nested, _TIE_KEY: False}


def _reading(plan: TensorPlan, shared: Mapping[str, str]) -> TensorPlan:
    """A plan that reads the tensor which the checkpoint has."""
    name = shared.get(plan.source.name)
    return plan if name is None else replace(plan, source=replace(plan.source, name=name))


def _environment(
    recipe: Recipe, config: Mapping[str, Any], names: Iterable[str] = (), tie: str | None = None
) -> Values:
    """What expressions see: config keys, the recipe's defaults where they are absent or null, its definitions.

    `tensors` is the list of the checkpoint's tensors, `tie` what is done about a shared readout.
    """
    values: Values = {key: value for key, value in config.items() if value is not None}
    for key, default in recipe.defaults.items():
        if look_up(key, values) is None:
            values[key] = default
    values |= {"tensors": list(names), "tie": tie}
    for name, expression, text in recipe.definitions:
        values[name] = _evaluate(expression, values, text.error)
    return values


def _evaluate(expression: Expression, values: Values, error: Any) -> Any:
    try:
        return evaluate(expression, values)
    except LanguageError as problem:
        raise error(problem.message, problem.span, problem.hint) from None


def _choose(choices: Sequence[Choice[T]], values: Values, match: Match | None = None) -> Choice[T]:
    for choice in choices:
        if choice.when is None or choice.condition is None or _evaluate(choice.when, values, choice.condition.error):
            return choice
    what = f"for `{match.groups.string}` " if match else ""
    raise choices[-1].text.error(f"no alternative holds {what}with this config", hint="add one without `when`")


# Axes -----------------------------------------------------------------------------------------


def _axes(
    recipe: Recipe,
    specs: Sequence[TensorSpec],
    layouts: Mapping[str, Choice[Any]],
    matches: Mapping[str, Match],
    values: Values,
    factors: Mapping[str, int],
    used: frozenset[str],
) -> dict[str, Axis]:
    """The axes with their sizes, from the config or, where the recipe says so, from the shapes."""
    sizes = _sizes_from_config(recipe, values, used)
    uneven = {rule.name for rule in recipe.axes if rule.uneven}
    axes = {name: Axis(name, size, factors[name] if name in used else 1, uneven=name in uneven)
            for name, size in sizes.items()}  # fmt: skip
    open_names = {rule.name for rule in recipe.axes if rule.size == "shapes" and rule.name in used}
    for spec in specs:
        if not open_names:
            break
        layout = layouts[spec.name].value
        if not isinstance(layout, Layout) or len(layout.dims) != len(spec.shape):
            continue
        for dim, size in zip(layout.dims, spec.shape, strict=True):
            try:
                names, solved = solve_size(dim, axes, size)
            except LayoutError:
                continue  # told with the tensor's name when its dimensions are mapped
            if solved is not None and len(names) == 1 and names <= open_names:
                name = names.pop()
                axes[name] = replace(axes[name], size=solved)
                open_names.remove(name)
    for name, count in _counts(matches).items():
        if axes[name].size is None:
            axes[name] = replace(axes[name], size=count)
            open_names.discard(name)
    for name in {name for match in matches.values() for part in match.rule.pattern.axes for name in part.names}:
        if (axes[name].size or 0) > len(matches):
            rule = next(rule for rule in recipe.axes if rule.name == name)
            raise rule.text.error(
                f"the config makes the axis `{name}` {axes[name].size}, which counts tensors, and there are "
                f"{len(matches)} tensors",
                hint="config and tensors disagree, or this is not the recipe for them",
            )
    if open_names:
        rule = next(rule for rule in recipe.axes if rule.name in open_names)
        raise rule.text.error(f"no tensor of the checkpoint tells the size of the axis `{rule.name}`")
    return axes


def _sizes_from_config(
    recipe: Recipe, values: Values, used: frozenset[str], *, lax: bool = False
) -> dict[str, int | None]:
    """The size of every axis that the config tells; `lax` also 0, which a config that does not fit may give."""
    sizes: dict[str, int | None] = {}
    known = dict(values)
    for rule in recipe.axes:
        if rule.size in ("shapes", "varies"):
            sizes[rule.name] = None
            continue
        size = _evaluate(rule.size, known, rule.text.error)  # type: ignore[arg-type]
        if not size and rule.name not in used:  # some architectures say 0 of what they do not have
            sizes[rule.name] = None
            continue
        if isinstance(size, float) and size.is_integer():
            size = int(size)
        if type(size) is not int or size < (0 if lax else 1):
            raise rule.text.error(
                f"the config makes the axis `{rule.name}` {shown(size)}, expected a whole number above 0",
                hint=None if size is not None else "the config lacks the key; is this the right recipe?",
            )
        sizes[rule.name] = known[rule.name] = size
    return sizes


def _used_axes(layouts: Mapping[str, Choice[Any]], matches: Mapping[str, Match]) -> frozenset[str]:
    """The axes that some tensor of the checkpoint has."""
    seen = {id(choice): choice.value for choice in layouts.values() if isinstance(choice.value, Layout)}
    in_layouts = (ref.name for layout in seen.values() for ref in axis_refs(layout) if isinstance(ref, AxisRef))
    in_names = (name for match in matches.values() for part in match.rule.pattern.axes for name in part.names)
    return frozenset((*in_layouts, *in_names))


def _counts(matches: Mapping[str, Match]) -> dict[str, int]:
    """How many tensors each axis in a name counts."""
    counts: dict[str, int] = defaultdict(int)
    for match in matches.values():
        for part in match.rule.pattern.axes:
            if len(part.names) == 1:
                counts[part.names[0]] = max(counts[part.names[0]], int(match.groups[part.group]) + 1)
    return counts


# Tensors --------------------------------------------------------------------------------------


class _TensorPlanner:
    """Plans tensors; rules and shapes repeat in every layer, so their maps are kept."""

    def __init__(
        self, axes: Mapping[str, Axis], method: Method, perturbation: Perturbation | None, prefixes: Sequence[str]
    ) -> None:
        self.axes = axes
        self.method = method
        self.perturbation = perturbation
        self.prefixes = prefixes
        self.maps: dict[tuple[str, str, tuple[int, ...]], tuple[DimMap, ...]] = {}

    def plan(self, spec: TensorSpec, match: Match, choice: Choice[Any]) -> Iterable[TensorPlan]:
        layout = choice.value
        rule = match.rule.pattern.text
        if layout == "keep":
            plan = TensorPlan(spec, spec, rule, "keep", keep_dims(spec.shape))
        else:
            key = (rule, choice.text.value, spec.shape)
            if key not in self.maps:
                self.maps[key] = self._map_dims(spec, layout, choice)
            dims = self.maps[key]
            shape = tuple(dim.wide_size for dim in dims)
            plan = TensorPlan(
                spec, replace(spec, shape=shape), rule, choice.text.value, dims,
                power_scale(layout.powers, self.axes), layout.offset,
            )  # fmt: skip
        for copied in self._name_copies(plan, match):
            finished = self._grown(copied)
            _check_dtype(finished)
            yield finished

    def parameters(self, recipe: Recipe, specs: Iterable[TensorSpec]) -> tuple[TensorPlan, ...]:
        """Plans of the reference model's parameters that are tensors of the checkpoint in another form."""
        found: dict[str, TensorPlan] = {}
        for spec in specs:
            for name, choice in recipe.other_parameters(spec.name):
                layout = choice.value
                if name in found or not isinstance(layout, Layout):
                    continue
                try:
                    shape = tuple(size_of(dim, self.axes) for dim in layout.dims)
                except LayoutError as problem:
                    raise choice.text.error(f"`{name}` {problem}") from None
                parameter = replace(spec, name=name, shape=shape)
                dims = self._map_dims(parameter, layout, choice)
                wide = replace(parameter, shape=tuple(dim.wide_size for dim in dims))
                scale = power_scale(layout.powers, self.axes)
                plan = TensorPlan(parameter, wide, name, choice.text.value, dims, scale, layout.offset)
                found[name] = self._grown(plan)
        return tuple(found.values())

    def _grown(self, plan: TensorPlan) -> TensorPlan:
        """A tensor's plan with what the method does beside copying: noise, shrinkage, values of fresh units."""
        growing = sum(any(s.multiplicity > 1 for s in dim.strips) for dim in plan.dims) + (plan.name_copies > 1)
        if not growing or DTYPES[plan.source.dtype].kind != "float":
            return plan
        if sum(size > 1 for size in plan.target.shape) < 2:  # gains and biases get no noise
            if self.method.is_copying:
                return plan
            # What a gain or a variance begins with is 1, a bias or a mean with 0.
            begins_at_one = plan.target.name.endswith((".weight", "running_var"))
            return replace(plan, fresh=plan.scale - plan.offset if begins_at_one else 0.0)
        is_matrix, c = growing > 1, plan.parts[0][0]
        shrink = 1.0
        if not self.method.is_copying:
            # The 1/k of a readout is muP's multiplier; within a matrix it is a share, of which fresh units take none.
            shrink = self.method.shrink * (1.0 if is_matrix else c / plan.scale)
        return replace(plan, noise=self._noise(plan, is_matrix=is_matrix), shrink=shrink)

    def _noise(self, plan: TensorPlan, *, is_matrix: bool) -> Noise | None:
        pieces = math.prod(max(strip.pieces for strip in dim.strips) for dim in plan.dims)
        asked = self.perturbation
        if asked is None or (asked.mode == "preserving" and pieces == 1):
            return None
        # Files that call the same weights by other prefixes, as training checkpoints do, must get the same noise.
        prefix = next((prefix for prefix in self.prefixes if plan.target.name.startswith(prefix)), "")
        return Noise(
            asked, plan.target.name.removeprefix(prefix), plan.target.shape, is_matrix, _fan_in(plan),
            plan.parts[0][0], pieces * plan.name_pieces,
        )  # fmt: skip

    def _map_dims(self, spec: TensorSpec, layout: Layout, choice: Choice[Any]) -> tuple[DimMap, ...]:
        if len(layout.dims) != len(spec.shape):
            raise choice.text.error(
                f"`{spec.name}` has {len(spec.shape)} dimensions {_shape(spec.shape)}, this layout {len(layout.dims)}"
            )
        maps = []
        for position, (dim, size) in enumerate(zip(layout.dims, spec.shape, strict=True)):
            if size == 0:
                raise PlanError(f"`{spec.name}` is empty: its shape is {_shape(spec.shape)}")
            try:
                maps.append(map_dim(dim, self.axes, size))
            except LayoutError as problem:
                sizes = ", ".join(f"{axis.name} = {axis.size}" for axis in self.axes.values() if axis.size is not None)
                raise choice.text.error(
                    f"`{spec.name}` has the shape {_shape(spec.shape)}, but dimension {position}, "
                    f"`{_excerpt(choice.text.value, dim)}`, {problem}",
                    dim.span,
                    hint=f"config and tensors disagree, or this is not the recipe for them; {sizes}",
                ) from None
        return tuple(maps)

    def _name_copies(self, plan: TensorPlan, match: Match) -> Iterable[TensorPlan]:
        """One plan for each tensor that the axes in the name turn the source into."""
        parts = match.rule.pattern.axes
        if not parts:
            yield plan
            return
        named = [self.axes[name] for part in parts for name in part.names]
        if math.prod(axis.factor for axis in named) > _MAX_TENSORS:
            raise PlanError(f"`{plan.source.name}` would become more than {_MAX_TENSORS} tensors")
        copies = [list(self._indices(part, plan, match)) for part in parts]
        contracted = [len(indices) if part.contracted else 1 for part, indices in zip(parts, copies, strict=True)]
        for chosen in itertools.product(*map(enumerate, copies)):
            piece = 0
            for part, (digit, _), pieces in zip(parts, chosen, contracted, strict=True):
                piece = piece * pieces + digit if part.contracted else piece
            name = expand_name(match.rule.pattern, match.groups, [index for _, index in chosen])
            yield replace(plan, target=replace(plan.target, name=name), name_copies=math.prod(map(len, copies)),
                          piece=piece, name_pieces=math.prod(contracted))  # fmt: skip

    def _indices(self, part: NameAxis, plan: TensorPlan, match: Match) -> Iterable[int]:
        """The numbers that the copies of a tensor have, where its own counts the axes of `part`."""
        rest, digits = int(match.groups[part.group]), []
        axes = [self.axes[name] for name in part.names]
        for axis in reversed(axes[1:]):
            if axis.size is None:
                raise match.rule.text.error(f"the axis `{axis.name}` has no one size, so it cannot count tensors")
            rest, digit = divmod(rest, axis.size)
            digits.append(digit)
        if axes[0].size is not None and rest >= axes[0].size:
            size = math.prod(axis.size or 1 for axis in axes)
            raise match.rule.text.error(
                f"`{plan.source.name}` is beyond the {size} that `{{{' '.join(part.names)}}}` has"
            )
        digits = [rest, *reversed(digits)]
        for axis in axes:
            if axis.factor > 1 and not self.method.is_copying:
                raise PlanError(
                    f"the axis `{axis.name}` counts tensors, and `--method {self.method.name}` has nothing to make new "
                    "ones of",
                    hint=f"leave it with `--axis {axis.name}=1`, or take another method",
                )
        for chosen in itertools.product(
            *(self._positions(axis, digit) for axis, digit in zip(axes, digits, strict=True))
        ):
            index = 0
            for axis, position in zip(axes, chosen, strict=True):
                index = index * (axis.wide_size or 1) + position
            yield index

    @staticmethod
    def _positions(axis: Axis, unit: int) -> tuple[int, ...]:
        """The new numbers of a unit of an axis that counts tensors."""
        if axis.size is None:  # copies of what has no number of its own stay together
            return tuple(range(unit * axis.factor, (unit + 1) * axis.factor))
        return axis.copy_map().positions[unit]


def _prefixes(recipe: Recipe) -> tuple[str, ...]:
    """What may stand before the names of tensors, longest first."""
    return tuple(
        sorted({value for words in recipe.prefixes for value in words.values() if value}, key=len, reverse=True)
    )


def _fan_in(plan: TensorPlan) -> int:
    """How many wide elements the layer sums for each output; 1 for a table in which rows are looked up."""
    first, *others = plan.dims
    kernel = math.prod(dim.wide_size for dim in others[1:])
    if _is_summed(first):  # stored as inputs x outputs
        return first.wide_size * kernel
    is_summed = any(map(_is_summed, others))
    is_lookup = not is_summed and all(strip.multiplicity == 1 for strip in first.strips)
    return 1 if is_lookup else math.prod(dim.wide_size for dim in others)


def _is_summed(dim: DimMap) -> bool:
    return any(digit.contracted or digit.averaged for strip in dim.strips for digit in strip.digits)


def _check_dtype(plan: TensorPlan) -> None:
    kind = DTYPES[plan.source.dtype].kind
    if kind == "float" or not (plan.is_changed or kind == "packed"):
        return
    if kind == "packed":
        raise PlanError(
            f"`{plan.source.name}` is {plan.source.dtype}, whose scales are stored elsewhere; "
            "such weights are not widened",
            hint="dequantize the model to bfloat16 first",
        )
    if plan.is_scaled:
        raise PlanError(
            f"`{plan.source.name}` is {plan.source.dtype}, but its rule scales it; "
            "integers that stand for weights are packed",
            hint="dequantize the model to bfloat16 first",
        )


def _excerpt(text: str, dim: Dim) -> str:
    return text[slice(*dim.span)]


def _number(value: int) -> str:
    """A whole number in a message; Python does not write those of thousands of digits."""
    return str(value) if abs(value) < 10**18 else "a number of many digits"


def _shape(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def with_noise(plan: Plan, stds: Mapping[str, float]) -> Plan:
    """A plan whose noise has the sizes that were measured, by the names of the wide tensors."""
    if not stds:
        return plan

    def sized(tensor: TensorPlan) -> TensorPlan:
        std = stds.get(tensor.target.name)
        return tensor if tensor.noise is None or std is None else replace(tensor, noise=replace(tensor.noise, std=std))

    shards = tuple(replace(shard, tensors=tuple(map(sized, shard.tensors))) for shard in plan.shards)
    return replace(plan, shards=shards)


# Config ---------------------------------------------------------------------------------------


def _widen_config(
    recipe: Recipe, config: Mapping[str, Any], values: Values, axes: Mapping[str, Axis]
) -> tuple[dict[str, Any], tuple[ConfigChange, ...]]:
    """The config of the wide model, and what changed."""
    known = {**values, **{axis.name: axis.wide_size for axis in axes.values() if axis.wide_size is not None}}
    widened = copy.deepcopy(dict(config))
    changes = []
    for rule in recipe.config:
        *path, key = rule.key.split(".")
        section, new_section = config, widened
        for name in path:
            section, new_section = section.get(name) or {}, new_section.setdefault(name, {})
            if not isinstance(section, Mapping) or not isinstance(new_section, dict):
                raise PlanError(f"config.json: `{name}` is {shown(section)}, expected an object with `{key}`")
        if rule.optional and key not in section:
            continue
        choice = _choose(rule.choices, values)
        expression, powers = choice.value
        after = _scaled(_evaluate(expression, known, choice.text.error), power_scale(powers, axes), choice)
        if key not in section or section[key] != after:
            changes.append(ConfigChange(rule.key, section.get(key), after))
            new_section[key] = after
    return widened, tuple(changes)


def _scaled(value: Any, scale: float, choice: Choice[Any]) -> Any:
    if scale == 1 or value is None:
        return value
    if isinstance(value, list):
        return [_scaled(item, scale, choice) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise choice.text.error(f"`{shown(value)}` in the config cannot be scaled")
    try:
        scaled = value * scale
    except OverflowError:
        raise choice.text.error("the value in the config is too large to be scaled") from None
    return int(scaled) if isinstance(value, int) and float(scaled).is_integer() else scaled


def _check_sizes(recipe: Recipe, wide_values: Values, axes: Mapping[str, Axis], used: frozenset[str]) -> None:
    """Whoever reads the new config must derive the sizes that the new tensors have."""
    sizes = _sizes_from_config(recipe, wide_values, used, lax=True)
    for rule in recipe.axes:
        expected = axes[rule.name].wide_size
        if rule.name in used and sizes[rule.name] not in (None, expected):
            error = rule.text.error(
                f"the widened config makes the axis `{rule.name}` {sizes[rule.name]}, "
                f"the widened tensors make it {expected}"
            )
            raise ConfigError(
                error.message,
                excerpt=error.excerpt,
                hint="widen the axes that the config ties to it as well; or, if the recipe is yours, set in its "
                "`config` section what the axis is computed from",
            )


def _check_layouts(layouts: Mapping[str, Choice[Any]], matches: Mapping[str, Match], wide_values: Values) -> None:
    """The new config must not mean another structure, as embeddings that grow as wide as the residual stream do."""
    checked: set[int] = set()
    for name, match in matches.items():
        if id(match.rule) in checked:
            continue
        checked.add(id(match.rule))
        wide = _choose(match.rule.choices, wide_values, match)
        if wide is not layouts[name]:
            error = match.rule.text.error(
                f"with the widened config, `{name}` would be `{wide.text.value}` instead of "
                f"`{layouts[name].text.value}`: that config means another structure"
            )
            raise ConfigError(error.message, excerpt=error.excerpt, hint="widen by another factor")


# Shards ---------------------------------------------------------------------------------------


def split_into_shards(
    tensors: Sequence[TensorPlan], max_bytes: int | None, pattern: str = "model{suffix}.safetensors"
) -> tuple[Shard, ...]:
    """Distribute tensors over files, in their order.

    Args:
        tensors: what is written.
        max_bytes: largest file, in bytes of tensor data; None for a single one.
        pattern: of the names of the files.
    """
    by_name: dict[str, Any] = {tensor.target.name: tensor for tensor in tensors}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda tensor: tensor.target.num_bytes,
        filename_pattern=pattern,
        max_shard_size=max_bytes if max_bytes is not None else 1 + sum(t.target.num_bytes for t in tensors),
    )
    return tuple(
        Shard(file, tuple(by_name[name] for name in names)) for file, names in split.filename_to_tensors.items()
    )
