"""Planning LoRA adapters: each tensor follows from the plan of the weight that it changes. No torch, no data.

An adapter adds s B A to a weight W. Widening copies and scales W along each dimension separately, so the same maps
widen the product: B takes the map of the rows and the scale of W, A that of the columns (page `theory`, "Adapters").
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.dims import Digit, DimMap, keep_dims
from mupscale_cli.plan.names import ParameterNames
from mupscale_cli.plan.types import ConfigChange, Plan, Shard, TensorPlan
from mupscale_cli.text import listed

_MERGE_HINT = "merge the adapter into its base model with peft's `merge_and_unload()`, and widen the result"
# peft's prefix, the module, the wrappers around it, and the tensor's name within it.
_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)(?P<wrappers>(?:\.base_layer|\.modules_to_save|\.original_module)*)"
    r"\.(?P<part>lora_\w+(?:\.(?:weight|bias))?|token_adapter\.\w+|[^.]+)"
)
# Config keys that select modules by their names or by the numbers of their layers.
_PATTERNS = ("rank_pattern", "alpha_pattern")
_SELECTING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", *_PATTERNS)
_NUMBER = re.compile(r"(?:^|\.)\d+(?:\.|$)|[\\\[(|*+]")  # a component that is a number, or a regular expression
_STACKED = 3  # dimensions of a parameter that holds the weights of several experts


@dataclass(frozen=True, slots=True)
class _Weight:
    """The weight that an adapter changes, as a map from inputs to outputs.

    Attributes:
        plan: its plan.
        rows: map of its outputs.
        columns: maps of its inputs, and of the kernel of a convolution.
    """

    plan: TensorPlan
    rows: DimMap
    columns: tuple[DimMap, ...]

    @property
    def kernel(self) -> tuple[None, ...]:
        """The dimensions of the kernel where they have size 1, as in B and in the magnitudes."""
        return (None,) * (len(self.columns) - 1)


@dataclass(frozen=True, slots=True)
class _Part:
    """How a tensor of an adapter follows from the weight.

    Attributes:
        parameter: its name in a model with one adapter.
        dims: maps of its dimensions; None for one that stays, such as the rank.
        scale: its own scale if it also takes the weight's; None if it does not.
    """

    parameter: str
    dims: Callable[[_Weight], tuple[DimMap | None, ...]]
    scale: Callable[[_Weight], float] | None = None


def _weight_scale(_weight: _Weight) -> float:
    """Return 1: the tensor has no scale but the weight's."""
    return 1.0


def _magnitudes(weight: _Weight) -> tuple[DimMap | None, ...]:
    return (None, weight.rows, *weight.kernel) if weight.kernel else (weight.rows,)


def _norm_ratio(weight: _Weight) -> float:
    """Return the norm of a wide row over that of the narrow one, apart from the scales of the row and the tensor.

    Raises:
        PlanError: it differs between rows, or noise and fresh weights change it.
    """
    plan, columns = weight.plan, weight.columns
    ratios = [
        math.prod(strip.scale / strip.pieces * math.sqrt(strip.multiplicity) for strip in strips)
        for strips in itertools.product(*(dim.strips for dim in columns))
    ]
    is_even = all(digit.units.is_even for dim in columns for digit in _digits(dim))
    has_fresh_rows = any(digit.units.fresh for digit in _digits(weight.rows))
    is_alike = is_even and all(math.isclose(ratio, ratios[0]) for ratio in ratios) and not has_fresh_rows
    if not is_alike or plan.noise or plan.init or plan.fill is not None:
        raise PlanError(
            f"the adapter uses DoRA, which divides by the norms of the rows of `{plan.target.name}`, and they do not "
            "all grow alike",
            hint=f"use a whole factor without noise, or {_MERGE_HINT}",
        )
    return ratios[0]


_EMBEDDING_A = "lora_embedding_A"
_TRAINED_TOKENS = "token_adapter.trainable_tokens_delta"
_PARTS: Mapping[str, _Part] = {
    "lora_A.weight": _Part("lora_A.default.weight", lambda weight: (None, *weight.columns)),
    "lora_B.weight": _Part("lora_B.default.weight", lambda weight: (weight.rows, None, *weight.kernel), _weight_scale),
    "lora_B.bias": _Part("lora_B.default.bias", lambda weight: (weight.rows,), _weight_scale),
    _EMBEDDING_A: _Part(f"{_EMBEDDING_A}.default", lambda weight: (None, *weight.columns)),
    "lora_embedding_B": _Part("lora_embedding_B.default", lambda weight: (weight.rows, None), _weight_scale),
    "lora_magnitude_vector": _Part("lora_magnitude_vector.default.weight", _magnitudes, _norm_ratio),
    _TRAINED_TOKENS: _Part(f"{_TRAINED_TOKENS}.default", lambda weight: (None, weight.rows), _weight_scale),
}


def plan_adapter(plan: Plan, specs: Sequence[TensorSpec], config: Mapping[str, Any], file: str, base: str) -> Plan:
    """Plan an adapter by the plan of its base model.

    The plan has no noise, whatever the base model gets: the wide adapter adds exactly the widened change.

    Args:
        plan: the plan of the base model.
        specs: every tensor of the adapter.
        config: the adapter's config, adapter_config.json.
        file: name of the file to write.
        base: path of the wide base model, for the config.

    Raises:
        PlanError: the adapter is of a kind that cannot be widened, or does not belong to the base model.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise PlanError(f"cannot widen an adapter of the type `{kind}`", hint=_other_kind_hint(kind))
    if config.get("layer_replication"):
        raise PlanError(
            "the adapter repeats layers of its base model (`layer_replication`), which has them only once",
            hint="peft cannot merge it either; widen a base model that stores each of these layers",
        )
    planner = _AdapterPlanner(ParameterNames(plan), config, {spec.name: spec.shape for spec in specs})
    tensors = tuple(tensor for spec in specs for tensor in planner.plan(spec))
    wide = {**config, "base_model_name_or_path": base, "revision": None, **planner.selection()}
    wide = {key: value for key, value in wide.items() if key in config or value}
    changes = (ConfigChange(key, config.get(key), value) for key, value in wide.items() if value != config.get(key))
    return replace(
        plan,
        shards=(Shard(file, tensors),),
        config=wide,
        config_changes=tuple(changes),
        omitted=(),
        tie=None,
        parameters=(),
        perturbation=None,
        goal=None,
        untied=(),
    )


def new_heads(plan: Plan, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """Return the tensors of an adapter that its base model lacks, such as a classifier, with names as in the model."""
    names = ParameterNames(plan)
    matches = ((spec, _NAME.fullmatch(spec.name)) for spec in specs)
    whole = ((spec, match) for spec, match in matches if match and not match["part"].startswith(("lora_", "token_")))
    heads = (replace(spec, name=f"{match['module']}.{match['part']}") for spec, match in whole)
    return tuple(head for head in heads if not names.find(head.name))


def parameter_name(name: str, config: Mapping[str, Any]) -> str:
    """Return the parameter's name in a model with one adapter, given the tensor's name in the adapter's file."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    module, leaf = name.removesuffix(f".{match['part']}"), match["part"]
    if leaf in _PARTS:
        return f"{module}.{_PARTS[leaf].parameter}"
    saved = tuple(config.get("modules_to_save") or ())
    ends = (place.start() for place in re.finditer(r"\.", name))
    end = next((end for end in ends if saved and name[:end].endswith(saved)), None)
    return name if end is None else f"{name[:end]}.modules_to_save.default{name[end:]}"


class _AdapterPlanner:
    """Plans the tensors of one adapter, and remembers which modules they change.

    Args:
        names: the tensors of the base model.
        config: the adapter's config.
        shapes: shape of every tensor of the adapter by name.
    """

    def __init__(self, names: ParameterNames, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.names = names
        self.config = config
        self.shapes = shapes
        self.targets: dict[str, str] = {}  # narrow module by wide module
        self.is_renamed = False

    def plan(self, spec: TensorSpec) -> Iterator[TensorPlan]:
        """Plan the tensors that a tensor of the adapter becomes; several if widening adds modules."""
        if DTYPES[spec.dtype].kind != "float":
            raise PlanError(f"cannot widen the adapter's `{spec.name}`: it is {spec.dtype}")
        match = _NAME.fullmatch(spec.name)
        module, leaf = (match["module"], match["part"]) if match else ("", spec.name)
        part = _PARTS.get(leaf)
        if match is None or (part is None and (leaf.startswith(("lora_", "token_adapter.")) or ".lora_" in module)):
            raise PlanError(f"the adapter has a tensor of an unknown kind, `{spec.name}`", hint=_MERGE_HINT)
        wrapper = spec.name.removesuffix(f".{leaf}")
        parameter = f"{module}.{leaf}" if part is None else self._parameter(wrapper, module)
        weights = self.names.find(parameter)
        if not weights:
            raise PlanError(
                f"the adapter changes `{parameter}`, but the base model has no such tensor",
                hint=self.names.suggest(parameter) or "the adapter belongs to another base model",
            )
        for weight in weights:
            wide = self.names.wide_name(parameter, weight)
            self.is_renamed |= wide != parameter
            own = len(parameter) - len(module)
            name = spec.name.replace(module, wide[:-own], 1)
            if part is None:
                yield _planned(weight, spec, name, weight.dims)
                continue
            if leaf in ("lora_A.weight", _EMBEDDING_A):
                self.targets[wide[:-own]] = module
            # In a lookup table, a row is an input.
            is_table = leaf == _TRAINED_TOKENS or f"{wrapper}.{_EMBEDDING_A}" in self.shapes
            yield _planned_part(self._oriented(weight, is_table=is_table), leaf, part, spec, name)

    def _parameter(self, wrapper: str, module: str) -> str:
        """Return the parameter that the A and B of a wrapper around a module change.

        peft wraps a module once for each of its `target_parameters`. The names of the wrappers do not tell which one
        is whose, but their shapes do.

        Raises:
            PlanError: the shapes do not tell either.
        """
        targets = (target.rpartition(".") for target in self.config.get("target_parameters") or ())
        wrapped = [f"{module}.{name}" for path, _, name in targets if f".{module}.".endswith(f".{path}.")]
        if not wrapped:
            return f"{module}.weight"
        inputs, outputs = self.shapes.get(f"{wrapper}.lora_A.weight"), self.shapes.get(f"{wrapper}.lora_B.weight")
        fitting = {}
        for parameter in wrapped:
            for weight in self.names.find(parameter):
                oriented = self._oriented(weight, is_table=False)
                if inputs and outputs and (oriented.columns[0].size, oriented.rows.size) == (inputs[-1], outputs[0]):
                    fitting[oriented.rows, oriented.columns] = parameter
        if len(fitting) > 1:
            raise PlanError(
                f"`{wrapper}` may change any of {listed(wrapped)}, which grow differently", hint=_MERGE_HINT
            )
        return next(iter(fitting.values()), wrapped[0])

    def _oriented(self, weight: TensorPlan, *, is_table: bool) -> _Weight:
        """Return a weight as a map from inputs to outputs; most are stored as (outputs, inputs)."""
        is_stacked = len(weight.dims) == _STACKED and bool(self.config.get("target_parameters"))
        if is_stacked and not _is_unchanged(weight.dims[0]):
            raise PlanError(
                f"the adapter changes all experts of `{weight.source.name}` together, and their number grows",
                hint=_MERGE_HINT,
            )
        first, *others = weight.dims[1:] if is_stacked else weight.dims
        if not others:
            raise PlanError(f"the adapter multiplies `{weight.source.name}`, which is no matrix", hint=_MERGE_HINT)
        has_inputs_first = len(others) == 1 and (
            _is_summed(first) or (bool(self.config.get("fan_in_fan_out")) and not _is_summed(others[0]))
        )
        if is_table or has_inputs_first:
            return _Weight(weight, others[0], (first,))
        return _Weight(weight, first, tuple(others))

    def selection(self) -> dict[str, Any]:
        """Return the config keys that name modules, as far as they change.

        If widening renames modules, the numbers of layers would select others; then each module is named in full.

        Raises:
            PlanError: a key cannot name the modules of the wide model.
        """
        config = self.config
        by_number = config.get("layers_to_transform") is not None
        if not self.is_renamed or not (by_number or any(_names_numbers(config.get(key)) for key in _SELECTING)):
            return {}
        is_stacked = bool(config.get("target_parameters"))
        for key in ("modules_to_save", *(("target_parameters", *_PATTERNS) if is_stacked else ())):
            if _names_numbers(config.get(key)):
                raise PlanError(f"the adapter's `{key}` names modules whose numbers change", hint=_MERGE_HINT)
        patterns = {
            key: {
                wide: value
                for wide, module in self.targets.items()
                if (value := _pattern_value(config.get(key) or {}, module)) is not None
            }
            for key in _PATTERNS
        }
        return {**dict.fromkeys(_SELECTING), "target_modules": sorted(self.targets), **patterns}


def _planned_part(weight: _Weight, leaf: str, part: _Part, spec: TensorSpec, name: str) -> TensorPlan:
    """Plan a factor of the change, or a tensor that goes with one."""
    plan = weight.plan
    planned = _planned(plan, spec, name, part.dims(weight))
    planned = replace(planned, rule=f"{plan.rule.removesuffix('.weight')}.{leaf}", offset=0, fresh=0.0)
    if part.scale is not None:
        return replace(planned, scale=plan.scale * part.scale(weight))
    return replace(planned, scale=1.0, name_pieces=1, piece=0, shrink=1.0, undone=1.0, fill=None)


def _planned(weight: TensorPlan, spec: TensorSpec, name: str, dims: Sequence[DimMap | None]) -> TensorPlan:
    """Plan a tensor as the base model's weight, but with maps of its own."""
    fitted = tuple(
        own if dim is None or (dim.size != own.size and _is_unchanged(dim)) else dim
        for dim, own in zip(dims, keep_dims(spec.shape), strict=False)
    )
    if len(dims) != len(spec.shape) or tuple(dim.size for dim in fitted) != spec.shape:
        raise PlanError(
            f"the adapter's `{spec.name}` has the shape {spec.shape}, which does not fit `{weight.source.name}` of the "
            f"base model, {weight.source.shape}",
            hint=f"check that the adapter belongs to this base model; if it does, {_MERGE_HINT}",
        )
    target = TensorSpec(name, spec.dtype, tuple(dim.wide_size for dim in fitted))
    return replace(weight, source=spec, target=target, dims=fitted, noise=None, init=None)


def _is_unchanged(dim: DimMap) -> bool:
    return all(strip.scale == 1 and all(digit.units.is_identity for digit in strip.digits) for strip in dim.strips)


def _is_summed(dim: DimMap) -> bool:
    return any(digit.contracted for digit in _digits(dim))


def _digits(dim: DimMap) -> Iterator[Digit]:
    return (digit for strip in dim.strips for digit in strip.digits)


def _names_numbers(value: Any) -> bool:
    """Return whether a text in a config value, or in its keys, may name modules by a number."""
    if isinstance(value, str):
        return _NUMBER.search(value) is not None
    return isinstance(value, (Mapping, Sequence)) and any(map(_names_numbers, value))


def _pattern_value(patterns: Mapping[str, Any], module: str) -> Any:
    """Return the value of the first pattern that matches a module's name, as peft looks it up; None if none does."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)


def _other_kind_hint(kind: Any) -> str:
    """Return what to do with an adapter that is not LoRA."""
    if any(word in str(kind) for word in ("PROMPT", "PREFIX", "P_TUNING", "CPT")):
        return "train it again on the wide model; its virtual tokens cannot be merged"
    return _MERGE_HINT
