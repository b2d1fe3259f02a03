"""What a drafted recipe consists of, before it is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mupscale_cli.infer.axes import Axes
from mupscale_cli.infer.layouts import Group
from mupscale_cli.infer.trials import State
from mupscale_cli.infer.vocabulary import BY_NAME, kind_of, part_of
from mupscale_cli.infer.words import Words


@dataclass(frozen=True)
class Variant:
    """The layouts that hold for a tied or an untied readout.

    Attributes:
        groups: the tensors.
        state: the choice for each group.
    """

    groups: tuple[Group, ...]
    state: State

    @property
    def axes(self) -> set[str]:
        """The axes in the tensors' names and layouts."""
        names = {name for group in self.groups for _, name in group.name_axes}
        for group, choice in zip(self.groups, self.state.choices, strict=True):
            names.update(*(choice.form(group, dim).axes for dim in range(len(group.dims))))
        return names


@dataclass(frozen=True)
class Draft:
    """The content of a drafted recipe.

    Attributes:
        name: the model type, or the user's function.
        match: config keys and their values for the section `match`.
        axes: the axes.
        fixed: axes that cannot be widened, with the reason.
        config: the config of the tiny model.
        defaults: the values that the config class gives to absent keys.
        tied: the layouts if the readout shares the embedding's tensor; None if that was not tried.
        untied: the layouts if it does not; None if that was not tried.
        head: a pattern of the classes that have the readout.
        shares: further names of tensors that the model has under several names, each with the name in the layouts.
        covers: conditions on the config of the source, with their reasons.
        words: what fresh units and new blocks need.
        header: lines that say how the recipe was verified.
    """

    name: str
    match: Mapping[str, tuple[str, ...]]
    axes: Axes
    fixed: dict[str, str]
    config: dict[str, Any]
    defaults: dict[str, Any]
    tied: Variant | None
    untied: Variant | None
    head: str = ""
    shares: Mapping[str, str] = field(default_factory=dict)
    covers: Mapping[str, str] = field(default_factory=dict)
    words: Words = field(default_factory=Words)
    header: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[Variant, ...]:
        return tuple(variant for variant in (self.untied, self.tied) if variant)

    @property
    def movable(self) -> list[str]:
        """The independent axes that can be widened."""
        return [axis.name for axis in self.axes.candidates if axis.name not in self.fixed]

    @property
    def widen(self) -> tuple[str, ...]:
        """The axes that a bare factor widens."""
        free = [name for name in ordered(self.axes) if name not in self.fixed]
        plain = [name for name in free if not self._part(name)] or free  # other parts than the language model by name
        usual = [name for name in plain if not BY_NAME.fullmatch(kind_of(name))]
        for alias, product in self.axes.aliases.items():
            moving = [name for name in product if name in free and name in usual]
            if alias in usual and not moving:
                # The number of heads is fixed, so the residual stream grows with the size of a head.
                usual += [name for name in product if name in plain][:1]
            if len(moving) > 1:
                usual = [name for name in usual if name not in moving[1:]]
        return tuple(usual)

    def _part(self, axis: str) -> str:
        """Return the part of the config that an axis belongs to; it is empty for the language model."""
        counting = {candidate.name: candidate.key for candidate in self.axes.candidates}
        return part_of(counting.get(axis) or counting[self.axes.aliases[axis][0]])

    def grown_by(self, alias: str) -> str | None:
        """Return the part of an alias that a bare factor multiplies, such as the heads of the residual stream."""
        free = [name for name in self.axes.aliases[alias] if name not in self.fixed]
        return next((name for name in free if name in self.widen), None) if alias in self.widen else None

    def with_fixed(self, reasons: Mapping[str, str]) -> Draft:
        """Fix more axes, and the aliases whose parts are all fixed."""
        fixed = {**self.fixed, **reasons}
        for alias, product in self.axes.aliases.items():
            if all(part in fixed for part in product):
                fixed.setdefault(alias, fixed[product[0]])
        return replace(self, fixed=fixed)


def without_unused_axes(axes: Axes, variants: Collection[Variant]) -> Axes:
    """Drop the axes that no layout mentions. If some parts of an alias are laid out, its other parts cannot move."""
    used = set().union(*(variant.axes for variant in variants))
    used.update(*(product for alias, product in axes.aliases.items() if alias in used and not used & set(product)))
    parts = {alias: tuple(part for part in product if part in used) for alias, product in axes.aliases.items()}
    return replace(
        axes,
        candidates=tuple(axis for axis in axes.candidates if axis.name in used),
        aliases={alias: product for alias, product in parts.items() if product},
    )


def ordered(axes: Axes) -> list[str]:
    """Order names so that each size depends only on earlier ones, starting with the residual stream."""
    order = ("embed", "kv", "h", "g", "d", "ffn")
    kinds = {name: kind_of(name) for name in axes.names}
    return sorted(axes.names, key=lambda name: order.index(kinds[name]) if kinds[name] in order else len(order))
