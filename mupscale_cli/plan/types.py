"""What a widening decides: for every tensor, every file and the config. No torch, no data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mupscale_cli.architecture.types import Recipe
from mupscale_cli.dtypes import DTYPES, TensorSpec
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.dims import DimMap
from mupscale_cli.plan.methods import MUPSCALE, Method
from mupscale_cli.plan.perturbation import Noise, Perturbation


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
        scales = {
            self.scale * math.prod(strip.scale for strip in combination)
            for combination in itertools.product(*(dim.strips for dim in self.dims))
        }
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
        return self.method.trains_alike(self.axes)

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


def with_noise(plan: Plan, stds: Mapping[str, float]) -> Plan:
    """A plan whose noise has the sizes that were measured, by the names of the wide tensors."""
    if not stds:
        return plan

    def sized(tensor: TensorPlan) -> TensorPlan:
        std = stds.get(tensor.target.name)
        return tensor if tensor.noise is None or std is None else replace(tensor, noise=replace(tensor.noise, std=std))

    shards = tuple(replace(shard, tensors=tuple(map(sized, shard.tensors))) for shard in plan.shards)
    return replace(plan, shards=shards)
