"""Planning the modules behind a transformer: poolings, projections and norms of sentence-transformers.

What a module reads are copies of the narrow features, times a power of their number (page `theory`, "Modules behind a
transformer"). The layout of the features and that power are all that the next module depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Protocol

from mupscale_cli.architecture.layouts import AxisRef, parse_layout
from mupscale_cli.architecture.patterns import parse_pattern
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.config import with_changes
from mupscale_cli.plan.copies import FRESH, Axis
from mupscale_cli.plan.dims import LayoutError, map_dim, power_scale
from mupscale_cli.plan.tensors import name_prefixes
from mupscale_cli.plan.types import ConfigChange, Embeddings, Plan, PlannedModule, SideFile, TensorPlan
from mupscale_cli.text import listed

_TOKENS, _SENTENCE = "token_embeddings", "sentence_embedding"
_DIMENSION = ("embedding_dimension", "word_embedding_dimension")
_FLAG = "pooling_mode_"
_HIDDEN_STATES = (None, "last_hidden_state")
_LIBRARIES = ("sentence_transformers.", "pylate.")


class Module(Protocol):
    """A module that a model applies behind its transformer, or the transformer itself, as modules.json names it."""

    @property
    def folder(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def config_file(self) -> str | None: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def specs(self) -> tuple[TensorSpec, ...]: ...


@dataclass(frozen=True)
class Features:
    """What a module reads or gives.

    Attributes:
        axis: the axis that they run over; None if they stay as they are.
        times: how many runs over the axis lie end to end.
        exponent: they are the narrow features times the number of copies to this power.
    """

    axis: Axis | None
    times: int = 1
    exponent: Fraction = Fraction(0)

    @property
    def size(self) -> int | None:
        return None if self.axis is None or self.axis.size is None else self.axis.size * self.times

    @property
    def wide_size(self) -> int | None:
        return None if self.axis is None or self.axis.wide_size is None else self.axis.wide_size * self.times

    @property
    def is_exact(self) -> bool:
        """Whether they are whole copies, with the mean and the variance of the narrow features."""
        axis = self.axis
        if axis is None or axis.ratio == 1:
            return True
        return axis.filled == 1 and not axis.extra and not axis.isometric and self.exponent == 0

    @property
    def layout(self) -> str:
        if self.axis is None:
            return "."
        return self.axis.name if self.times == 1 else f"[{' + '.join([self.axis.name] * self.times)}]"


@dataclass(frozen=True)
class ModuleKind:
    """A kind of module.

    Attributes:
        sizes: config keys that hold the number of features that it reads.
        tensors: layout of each tensor by pattern of its name: `{summed}` for the features that it reads and sums over,
            `{same}` for features that it gives in their place.
        reads: the features that it reads unless its config names others.
        writes: the features that it gives; None for those that it reads.
        keeps: whether it gives features of a number of its own, which does not change.
        needs_copies: whether it computes with the mean of the features, or of those of inner blocks.
    """

    sizes: tuple[str, ...] = ()
    tensors: Mapping[str, str] = field(default_factory=dict)
    reads: str = _SENTENCE
    writes: str | None = None
    keeps: bool = False
    needs_copies: bool = False


_DENSE = {"linear.weight": "., {summed}", "linear.bias": ".", "residual.weight": "., {summed}"}
_RESIDUAL_DENSE = {"linear.weight": "{same}, {summed}", "linear.bias": "{same}"}
KINDS: Mapping[str, ModuleKind] = {
    "Pooling": ModuleKind(_DIMENSION, reads=_TOKENS, writes=_SENTENCE),
    "WeightedLayerPooling": ModuleKind(_DIMENSION, {"layer_weights": "."}, reads=_TOKENS, needs_copies=True),
    "Dense": ModuleKind(("in_features",), _DENSE, keeps=True),
    "Normalize": ModuleKind(),
    "LayerNorm": ModuleKind(("dimension",), {"norm.{weight,bias}": "{same}"}, needs_copies=True),
    "Dropout": ModuleKind(),
    "CNN": ModuleKind(
        ("in_embedding_dimension", "in_word_embedding_dimension"),
        {"convs.*.weight": "., {summed}, .", "convs.*.bias": "."},
        reads=_TOKENS,
        keeps=True,
    ),
    "WordWeights": ModuleKind(tensors={"emb_layer.weight": "., ."}, reads=_TOKENS),
    "MultiVectorMask": ModuleKind(reads=_TOKENS),
    "SpladePooling": ModuleKind(reads=_TOKENS, writes=_SENTENCE, keeps=True),
    "LogitScore": ModuleKind(keeps=True),
}
_TRANSFORMERS = ("Transformer", "MLMTransformer")
# What a transformer gives for each of its tasks: its last hidden states, or features that do not change.
_TASKS = {"feature-extraction": False, "fill-mask": True, "sequence-classification": True, "text-generation": True}


def plan_modules(plan: Plan, modules: Sequence[Module], settings: Mapping[str, Any], settings_file: str) -> Plan:
    """Add the modules of a model to the plan of its transformer.

    Args:
        plan: the plan of the transformer.
        modules: all modules in the order of modules.json; the first one is the transformer.
        settings: settings of the whole model, such as `truncate_dim`.
        settings_file: the name of their file.

    Raises:
        PlanError: a module has no map, or does not belong to the transformer.
    """
    first, *others = modules
    if _kind_name(first) not in _TRANSFORMERS:
        raise _unknown(first)
    features = {_TOKENS: _hidden_states(plan, first)}
    side_files = dict(plan.side_files)
    planned = []
    for module in others:
        kind = _kind(module)
        given, changes, layouts = _apply(plan, module, kind, features)
        tensors = tuple(_plan_tensor(plan, module, layouts, spec) for spec in module.specs)
        planned.append(PlannedModule(module.folder, module.type, tensors))
        features |= given
        if changes and module.config_file is not None:
            side_files[module.config_file] = SideFile(with_changes(module.config, changes), changes)
    final = features.get(_SENTENCE) or features[_TOKENS]
    if truncated := _truncated(settings, final):
        side_files[settings_file] = SideFile(with_changes(settings, truncated), truncated)
    return replace(
        plan,
        modules=tuple(module for module in planned if module.tensors),
        side_files=side_files,
        embeddings=_embeddings(final),
    )


def _kind_name(module: Module) -> str:
    """Return the name of a module's class; empty if it is not one of a known library."""
    return module.type.rpartition(".")[2] if module.type.startswith(_LIBRARIES) else ""


def _kind(module: Module) -> ModuleKind:
    kind = KINDS.get(_kind_name(module))
    if kind is None:
        raise _unknown(module)
    if module.config.get("use_residual") and module.config.get("in_features") == module.config.get("out_features"):
        return replace(
            kind, tensors=_RESIDUAL_DENSE, sizes=("in_features", "out_features"), keeps=False, needs_copies=True
        )
    return kind


def _unknown(module: Module) -> PlanError:
    return PlanError(
        f"modules.json has the module `{module.type}` (`{module.folder or '.'}`), and mupscale does not know what its "
        "tensors run over",
        hint=f"known: {', '.join((_TRANSFORMERS[0], *KINDS))}; without modules.json, the transformer is widened alone",
    )


def _hidden_states(plan: Plan, module: Module) -> Features:
    """Return what the transformer gives: its last hidden states, or scores of tokens or classes."""
    task = module.config.get("transformer_task") or "feature-extraction"
    outputs = [
        config.get("method_output_name")
        for config in (module.config.get("modality_config") or {}).values()
        if isinstance(config, Mapping)
    ]
    if task not in _TASKS or (not _TASKS[task] and not all(output in _HIDDEN_STATES for output in outputs)):
        what = task if task not in _TASKS else listed(map(str, outputs))
        raise PlanError(
            f"the modules read `{what}` of the transformer, and mupscale only knows its last hidden states",
            hint="without modules.json, the transformer is widened alone",
        )
    if _TASKS[task] or _kind_name(module) == "MLMTransformer":
        return Features(None)
    axes = {axis.name: axis for axis in plan.axes}
    streams = {name for tensor in plan.tensors if tensor.block and tensor.block.writes for name in _outputs(tensor)}
    if len(streams) != 1:
        raise PlanError(
            f"the recipe `{plan.recipe.name}` has {len(streams)} residual streams, so mupscale does not know which one "
            "the modules read",
            hint="without modules.json, the transformer is widened alone",
        )
    axis = axes[streams.pop()]
    block = next(tensor for tensor in plan.tensors if tensor.block)
    prefix = next((p for p in name_prefixes(plan.recipe) if block.source.name.startswith(p)), "")
    is_folded = any(name.startswith(prefix) for name in plan.folded)
    return Features(axis, exponent=Fraction(-1 if is_folded else 0))


def _outputs(tensor: TensorPlan) -> Iterator[str]:
    """Yield the axes that fill a dimension of what a tensor's layer gives."""
    for dim in parse_layout(tensor.layout).dims if tensor.layout != "keep" else ():
        if isinstance(dim, AxisRef) and not (dim.contracted or dim.averaged):
            yield dim.name


def _apply(
    plan: Plan, module: Module, kind: ModuleKind, features: Mapping[str, Features]
) -> tuple[dict[str, Features], tuple[ConfigChange, ...], dict[str, str]]:
    """Return the features that a module gives, the changes of its config, and the layouts of its tensors by pattern."""
    config, where = module.config, f"`{module.folder}` (`{module.type}`)"
    reads = str(config.get("module_input_name") or kind.reads)
    writes = str(config.get("module_output_name") or kind.writes or reads)
    if reads not in features:
        raise PlanError(f"{where} reads `{reads}`, which no module in front of it gives")
    found = features[reads]
    if kind.needs_copies and not (found.is_exact and (_kind_name(module) != "WeightedLayerPooling" or not plan.blocks)):
        raise PlanError(
            f"{where} computes with the mean of its inputs or with those of inner blocks, which change",
            hint="widen by a whole factor, with `--tie untie` if the readout is tied, and without new blocks",
        )
    changes = []
    for key in kind.sizes if found.size is not None else ():
        if key in config:
            if config[key] != found.size:
                raise PlanError(
                    f"`{key}` of {where} is {config[key]}, but it reads {found.size} features",
                    hint="check that modules.json and the config belong to this model",
                )
            changes.append(ConfigChange(key, config[key], found.wide_size))
    scale = f" | {found.axis.name}^{float(-found.exponent)}" if found.axis is not None and found.exponent else ""
    words = {"summed": f"/{found.layout}" if found.axis else ".", "same": found.layout}
    layouts = {
        pattern: text.format(**words) + (scale if "{summed}" in text else "") for pattern, text in kind.tensors.items()
    }
    return {writes: _given(module, kind, found)}, tuple(c for c in changes if c.before != c.after), layouts


def _given(module: Module, kind: ModuleKind, found: Features) -> Features:
    if kind.keeps or found.axis is None:
        return Features(None)
    name = _kind_name(module)
    if name == "Pooling":
        return replace(found, times=found.times * _num_modes(module.config))
    if name == "Normalize":  # the norm of k copies is sqrt(k) times as large
        return replace(found, exponent=Fraction(-1, 2))
    return found


def _num_modes(config: Mapping[str, Any]) -> int:
    """Return how many pooled vectors lie end to end."""
    modes = config.get("pooling_mode")
    if isinstance(modes, list):
        return len(modes)
    flags = [value for key, value in config.items() if key.startswith(_FLAG)]
    return max(sum(map(bool, flags)), 1)


def _plan_tensor(plan: Plan, module: Module, layouts: Mapping[str, str], spec: TensorSpec) -> TensorPlan:
    pattern = next((p for p in layouts if parse_pattern(p).regex({}).fullmatch(spec.name)), None)
    where = f"`{spec.name}` of `{module.folder}` (`{module.type}`)"
    if pattern is None:
        raise PlanError(f"mupscale does not know what {where} runs over")
    layout, axes = parse_layout(layouts[pattern]), {axis.name: axis for axis in plan.axes}
    if len(layout.dims) != len(spec.shape):
        raise PlanError(f"{where} has {len(spec.shape)} dimensions, expected {len(layout.dims)}")
    try:
        dims = tuple(map_dim(dim, axes, size) for dim, size in zip(layout.dims, spec.shape, strict=True))
    except LayoutError as problem:
        raise PlanError(f"a dimension of {where} {problem}") from problem
    target = replace(spec, shape=tuple(dim.wide_size for dim in dims))
    planned = TensorPlan(spec, target, pattern, layouts[pattern], dims, power_scale(layout.powers, axes))
    if planned.is_changed and DTYPES[spec.dtype].kind != "float":
        raise PlanError(f"cannot widen {where}: it is {spec.dtype}")
    return planned


def _truncated(settings: Mapping[str, Any], final: Features) -> tuple[ConfigChange, ...]:
    """Return the change of `truncate_dim`: the first features that are copies of those which were kept."""
    before, axis = settings.get("truncate_dim"), final.axis
    if type(before) is not int or axis is None or axis.ratio == 1 or final.size is None or before >= final.size:
        return ()
    sources = axis.copy_map().all_sources if final.times == 1 else ()
    for end in range(before, len(sources) + 1):
        counts = [sources[:end].count(unit) for unit in range(before)] if _is_prefix(sources[:end], before) else []
        if counts and len(set(counts)) == 1 and counts[0]:
            return (ConfigChange("truncate_dim", before, end),) if end != before else ()
    raise PlanError(
        f"`truncate_dim` keeps the first {before} features, and no number of the wide ones are copies of exactly these",
        hint="remove `truncate_dim` before widening",
    )


def _is_prefix(sources: Sequence[int], count: int) -> bool:
    return all(source < count for source in sources if source != FRESH)


def _embeddings(final: Features) -> Embeddings | None:
    if final.axis is None or final.axis.ratio == 1 or final.size is None or final.wide_size is None:
        return None
    dot = float(Fraction(final.axis.repeats) ** int(1 + 2 * final.exponent))
    return Embeddings(final.size, final.wide_size, dot)
