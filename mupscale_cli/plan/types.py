"""The plan of a widening: every decision about tensors, files and config. Does not import torch or read data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from mupscale_cli.architecture.types import Recipe
from mupscale_cli.architecture.wrappers import Wrapping
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.plan.blocks import BlockMap
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import DimMap
from mupscale_cli.plan.methods import MUPSCALE, Method
from mupscale_cli.plan.perturbation import Init, Noise, Perturbation
from mupscale_cli.plan.request import Request, Size


@dataclass(frozen=True, slots=True)
class Block:
    """The block of a stack that a tensor belongs to.

    Attributes:
        stack: name of the stack in the recipe.
        is_new: whether the block is new, so that its optimizer state starts from zero.
        writes: whether the block's contribution to the residual stream is linear in the tensor.
        position: number of the block in the deeper stack; None if it does not matter.
    """

    stack: str
    is_new: bool
    writes: bool
    position: int | None = None


@dataclass(frozen=True)
class TensorPlan:
    """Plan of one output tensor: W' = c R(W), see page `theory`.

    Attributes:
        source: the tensor to read.
        target: the tensor to write.
        rule: pattern of the recipe's rule for the tensor.
        layout: layout of that rule, as text.
        dims: map of each dimension.
        scale: scale of the whole tensor, in addition to the division by copies of summed axes.
        offset: o in a layer that uses o + w instead of w; the scale applies to o + w.
        name_copies: number of tensors that the source becomes; above 1 if an axis in its name is widened.
        piece: index of this tensor's share, if the layer sums over an axis in the name.
        name_pieces: number of shares into which the axes in the name split an element.
        first_only: whether the first share is the whole element and the others are zero.
        noise: noise to add at the end.
        shrink: factor of the source in addition to c; methods that keep the function have 1.
        fresh: value of elements without a source, before noise.
        fill: value of every element, if the tensor has no data of the source; shapes and scales are still those of
            its rule.
        block: the block that the tensor belongs to; None outside of stacks of blocks.
        init: initial weights of the fresh elements that may differ from `fresh`; None if they get none.
        undone: the part of the scale that the layer undoes: a norm over fresh units divides by a smaller number.
        taken: the part of the scale that makes up for the layer's input: powers of axes that it sums over, whose
            copies arrive scaled. Its output does not show them.
        reads: the axes that the layer sums over.
        writes: the axis that is the whole first dimension, if there is one.
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
    fill: float | None = None
    block: Block | None = None
    init: Init | None = None
    undone: float = 1.0
    taken: float = 1.0
    reads: frozenset[str] = frozenset()
    writes: str | None = None

    @cached_property
    def parts(self) -> tuple[tuple[float, int], ...]:
        """Coefficient c and multiplicity m of each part of the tensor, without duplicates.

        A tensor has one part, unless it concatenates segments that are widened differently.
        """
        strips = itertools.product(*(dim.strips for dim in self.dims))
        return tuple(
            dict.fromkeys(
                (
                    self.scale
                    * math.prod(strip.scale for strip in combination)
                    / (self.name_pieces * math.prod(strip.pieces for strip in combination)),
                    self.name_copies * math.prod(strip.multiplicity for strip in combination),
                )
                for combination in strips
            )
        )

    def renamed(
        self, source: TensorSpec, name: str, piece: int | None = None, block: Block | None = None
    ) -> TensorPlan:
        """Return the same plan for another tensor of the same shape and type; faster than `replace`.

        Args:
            source: the tensor to read.
            name: the name to write.
            piece: index of the share. Default: unchanged.
            block: the block. Default: unchanged.
        """
        plan = object.__new__(TensorPlan)
        target = self.target if self.target.name == name else TensorSpec(name, self.target.dtype, self.target.shape)
        vars(plan).update(
            vars(self),  # with `parts`, if they are known
            source=source,
            target=target,
            piece=self.piece if piece is None else piece,
            block=self.block if block is None else block,
        )
        return plan

    @property
    def coefficient(self) -> float | None:
        """c, the factor of each copy of an element; None if the parts differ."""
        return self.parts[0][0] if len({c for c, _ in self.parts}) == 1 else None

    @property
    def multiplicity(self) -> int | None:
        """m, the number of copies of an element; None if the parts differ."""
        return self.parts[0][1] if len({m for _, m in self.parts}) == 1 else None

    @property
    def is_new(self) -> bool:
        """Whether the tensor belongs to a new block."""
        return self.block is not None and self.block.is_new

    @property
    def is_changed(self) -> bool:
        return self.source.shape != self.target.shape or self.is_scaled or self.name_copies > 1

    @property
    def is_scaled(self) -> bool:
        return self.shrink != 1 or any(c != 1 for c, _ in self.parts)

    @property
    def is_rounded(self) -> bool:
        """Whether scaling rounds. Splitting over copies is exact; scaling by other numbers than 2^n is not."""
        scales = {
            self.scale * math.prod(strip.scale for strip in combination)
            for combination in itertools.product(*(dim.strips for dim in self.dims))
        }
        is_inexact = any(scale != 1 and (self.offset or math.frexp(scale)[0] != 0.5) for scale in scales)
        return is_inexact and self.fill is None

    @property
    def has_means(self) -> bool:
        """Whether some elements are the mean of others, which storing rounds."""
        digits = (digit for dim in self.dims for strip in dim.strips for digit in strip.digits)
        return self.fill is None and any(digit.fill == "mean" and digit.units.num_fresh for digit in digits)


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
    """A changed key of config.json with its old and new value; `before` is None if the key was absent."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class SideFile:
    """The new content of a JSON file beside config.json, and its changed keys."""

    content: dict[str, Any]
    changes: tuple[ConfigChange, ...]


@dataclass(frozen=True)
class PlannedModule:
    """The tensors of a module behind the model, in a folder of its own."""

    folder: str
    type: str
    tensors: tuple[TensorPlan, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.target.num_bytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of texts that a model with modules gives.

    Attributes:
        size: number of dimensions before.
        wide_size: number of dimensions after.
        dot: factor of dot products between two of them; their cosine stays.
    """

    size: int
    wide_size: int
    dot: float


@dataclass(frozen=True, slots=True)
class KeyDifference:
    """A config key that differs between source and target.

    Attributes:
        key: the key, dotted within sections.
        before: its value in the source; None if it is absent.
        target: its value in the target; None if it is absent.
        after: its value in the output.
    """

    key: str
    before: Any
    target: Any
    after: Any

    @property
    def fate(self) -> str:
        """`kept` if the output has the source's value, `grown` if it has the target's, else `adapted`."""
        return "kept" if self.after == self.before else "grown" if self.after == self.target else "adapted"


@dataclass(frozen=True, slots=True)
class GoalComparison:
    """The model whose sizes were taken, by path or Hub id, and the config keys that differ from it."""

    name: str
    keys: tuple[KeyDifference, ...]


@dataclass(frozen=True)
class Plan:
    """A complete plan of a widening; carrying it out requires no further decisions.

    Attributes:
        recipe: recipe of the architecture.
        axes: every axis with its factor.
        shards: output files.
        config: the widened config; None if the checkpoint has none.
        config_changes: differences between the source's config and the widened one.
        omitted: tensors that the recipe omits.
        wrapping: what the stored names have in addition to those that the recipe knows.
        tie: how a readout that shares the embedding is scaled: `fold`, `config` or `untie`; None if it does not.
        parameters: parameters of the reference model that the checkpoint stores in another form, such as
            experts that the model keeps in one tensor and the checkpoint in several.
        used: axes that occur in some tensor.
        blocks: the blocks of every stack that grows, by its name.
        untied: names of output tensors that share the data of another tensor in the source.
        method: method of growing.
        perturbation: noise to add; None for no noise.
        goal: the model whose sizes were taken; None if the sizes were chosen in another way.
        training_differences: axes whose growth makes training differ even if all fresh weights are 0, with the reasons.
        folded: tensors of the source that take the factor of a readout which shares the embedding.
        side_files: the JSON files beside config.json that change, by name.
        notes: what the recipe says about this widening.
        modules: the modules behind the model that have tensors.
        embeddings: what the model and its modules give; None if it has none, or they keep their size.
    """

    recipe: Recipe
    axes: tuple[Axis, ...]
    shards: tuple[Shard, ...]
    config: dict[str, Any] | None
    config_changes: tuple[ConfigChange, ...]
    omitted: tuple[str, ...]
    wrapping: Wrapping
    tie: str | None = None
    parameters: tuple[TensorPlan, ...] = ()
    used: frozenset[str] = frozenset()
    method: Method = MUPSCALE
    perturbation: Perturbation | None = None
    goal: GoalComparison | None = None
    blocks: Mapping[str, BlockMap] = field(default_factory=dict)
    untied: tuple[str, ...] = ()
    training_differences: Mapping[str, str] = field(default_factory=dict)
    folded: frozenset[str] = frozenset()
    side_files: Mapping[str, SideFile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    modules: tuple[PlannedModule, ...] = ()
    embeddings: Embeddings | None = None

    @cached_property
    def tensors(self) -> tuple[TensorPlan, ...]:
        return tuple(tensor for shard in self.shards for tensor in shard.tensors)

    @property
    def plain_names(self) -> list[str]:
        """The names of the source's tensors that the recipe knows."""
        return [self.wrapping.plain(tensor.source.name) for tensor in self.tensors]

    @property
    def names_note(self) -> str | None:
        """A sentence about what training wrapped around the names of tensors; None if nothing."""
        wrapped = next((t for t in self.tensors if self.wrapping.plain(t.source.name) != t.source.name), None)
        if wrapped is None:
            return None
        name = wrapped.source.name
        known = self.wrapping.plain(name)
        if self.wrapping.is_stripped:
            return f"names are written without what training wrapped around them: `{name}` becomes `{known}`"
        return f"names keep what training wrapped around them, as in `{name}`; `--clean-names` writes `{known}`"

    def parameter_name(self, tensor: str) -> str:
        """Return the reference model's name for a stored tensor."""
        return self.recipe.parameter_name(self.wrapping.plain(tensor))

    @property
    def factors(self) -> dict[str, int]:
        """Copies of each unit of the widened axes by name."""
        return {axis.name: axis.factor for axis in self.axes if axis.ratio > 1}

    @property
    def request(self) -> Request:
        """The request that grows the same axes as far again."""
        axes = {axis.name: Size(axis.wide_size) if axis.wide_size else axis.factor for axis in self.axes}
        return Request(axes=axes, blocks=self.blocks)

    @property
    def num_bytes(self) -> int:
        """Size of the output's tensor data in bytes."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def is_exact(self) -> bool:
        """Whether the wide model without noise computes the same function as the narrow one."""
        return self.method.is_copying and (self.method.adds_identity or not self.blocks)

    @property
    def keeps_function(self) -> bool:
        """Whether the wide model computes the same function as the narrow one."""
        return self.is_exact and (self.perturbation is None or self.perturbation.mode == "preserving")

    @property
    def trains_alike(self) -> bool:
        """Whether the wide model takes the same optimizer steps without its `additions` and with frozen new blocks."""
        return self.is_exact and self.method.trains_alike(self.axes) and not self.training_differences

    @property
    def additions(self) -> tuple[str, ...]:
        """What is added to the widened weights, by which training differs: noise, and fresh units' initial weights."""
        has_init = any(tensor.init is not None for tensor in self.tensors)
        return (*(("noise",) if self.perturbation else ()), *(("initial weights",) if has_init else ()))

    @property
    def stays_symmetric(self) -> bool:
        """Whether copies have equal gradients and thus stay equal in training, and fresh units none (page `noise`)."""
        idle = any(axis.factor > 1 or axis.extra or (axis.fresh and not self.method.initializes) for axis in self.axes)
        is_read = any(axis.order == "tiled" and axis.ratio > 1 for axis in self.axes)  # one copy of some units alone
        return self.method.is_copying and self.perturbation is None and idle and not is_read

    @property
    def num_parameters(self) -> tuple[int, int]:
        """Number of elements in floating-point tensors, before and after."""
        floats = [tensor for tensor in self.tensors if DTYPES[tensor.target.dtype].kind == "float"]
        sources = {tensor.source.name: tensor.source for tensor in floats}
        return sum(spec.num_elements for spec in sources.values()), sum(t.target.num_elements for t in floats)

    @property
    def rounded(self) -> tuple[TensorPlan, ...]:
        """Tensors whose scaling rounds."""
        return tuple(tensor for tensor in self.tensors if tensor.is_rounded)

    @property
    def with_means(self) -> tuple[TensorPlan, ...]:
        """Tensors some of whose elements are means of others, which storing rounds."""
        return tuple(tensor for tensor in self.tensors if tensor.has_means)

    @property
    def fold_rounds(self) -> bool:
        """Whether scaling rounds only tensors that take a tied readout's factor, which untying avoids."""
        return bool(self.rounded) and all(tensor.source.name in self.folded for tensor in self.rounded)


def with_noise(plan: Plan, stds: Mapping[str, float]) -> Plan:
    """Return the plan with measured noise.

    Args:
        plan: a plan whose noise has no standard deviations yet.
        stds: standard deviation of the noise by the name of the wide tensor, in units of its elements.
    """
    if not stds:
        return plan

    def measured(tensor: TensorPlan) -> TensorPlan:
        std = stds.get(tensor.target.name)
        return tensor if tensor.noise is None or std is None else replace(tensor, noise=replace(tensor.noise, std=std))

    shards = tuple(replace(shard, tensors=tuple(map(measured, shard.tensors))) for shard in plan.shards)
    return replace(plan, shards=shards)
