"""Keeping the frequencies of rotary positions when a head grows (page `theory`, "Any size").

Of k times as many pairs of units, pair k i takes the place of pair i. What a config says about frequencies must give
both the same one. The rules for scaled frequencies are those of `modeling_rope_utils` in transformers 5.24.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mupscale_cli.architecture.expressions import look_up, names_in
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.errors import SizeError
from mupscale_cli.plan.copies import Axis

_SECTIONS = ("rope_parameters", "rope_scaling")
_FRACTIONS = ("partial_rotary_factor", "rotary_pct", "rotary_percentage")  # of the units of a head that positions turn
_Keys = Iterator[tuple[str, Any]]


class _NotKeptError(Exception):
    """Why no config keeps the frequencies, as a sentence."""


@dataclass(frozen=True)
class _Rope:
    """What a config says about frequencies, and how far the head grows.

    Attributes:
        said: the keys of the section about rotary positions, and those of the model's config where it has none.
        size: number of units of a head.
        factor: k, how many times as large the head becomes.
    """

    said: Mapping[str, Any]
    size: int
    factor: int

    @property
    def kind(self) -> str:
        """The rule for the frequencies."""
        return self.said.get("rope_type") or self.said.get("type") or "default"

    @property
    def fraction(self) -> float:
        """The fraction of units that positions turn."""
        return next((self.said[key] for key in _FRACTIONS if self.said.get(key)), 1.0)

    def turned(self, factor: int = 1) -> int:
        """Return how many units positions turn in a head that is `factor` times as large."""
        size = factor * self.size
        return 2 * int(self.fraction * size // 2) if self.kind == "proportional" else int(size * self.fraction)


def rotary_keys(recipe: Recipe, axes: Mapping[str, Axis], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config keys that must change for the frequencies of larger heads, with their new values.

    Args:
        recipe: recipe of the architecture.
        axes: every axis by name, with its growth.
        config: config.json of the source.

    Raises:
        SizeError: no config keeps the frequencies.
    """
    changed: dict[str, Any] = {}
    for rule in recipe.axes:
        axis = axes[rule.name]
        if not axis.is_spread or not axis.fresh or axis.size is None or isinstance(rule.size, str):
            continue
        for part in sorted({name.name.rpartition(".")[0] for name in names_in(rule.size)}):
            section = look_up(part, config) if part else config
            try:
                if isinstance(section, Mapping):
                    changed |= _keys_of_part(section, f"{part}." if part else "", axis.size, int(axis.ratio))
            except _NotKeptError as reason:
                raise SizeError(
                    f"the axis `{rule.name}` cannot grow from {axis.size} to {axis.wide_size} units: {reason}",
                    hint=f"keep its size with `--axis {rule.name}=1`",
                    instead={rule.name: 1},
                    axis=rule.name,
                ) from reason
    return changed


def _keys_of_part(config: Mapping[str, Any], prefix: str, size: int, factor: int) -> _Keys:
    """Yield the changes of a model's config, or of a part's."""
    yield from _fraction(_Rope(config, size, factor), config, prefix)
    for key in _SECTIONS:
        section = config.get(key)
        if not isinstance(section, Mapping):
            continue
        by_layer = {name: value for name, value in section.items() if isinstance(value, Mapping)}
        for name, said in (by_layer or {"": section}).items():
            rope = _Rope({**config, **said}, size, factor)
            if rope.kind not in _KINDS:
                raise _NotKeptError(f"how rotary positions of the type `{rope.kind}` depend on its size is unknown")
            place = f"{prefix}{key}.{name}." if name else f"{prefix}{key}."
            yield from _fraction(rope, said, place)
            for changed, value in _KINDS[rope.kind](rope, is_nested=bool(by_layer)):
                yield place + changed, value
            if isinstance(sections := said.get("mrope_section"), list):
                yield f"{place}mrope_section", [pairs * factor for pairs in sections]


def _fraction(rope: _Rope, said: Mapping[str, Any], prefix: str) -> _Keys:
    """Yield the fraction of turned units that turns k times as many, if the same fraction is rounded to others."""
    if rope.turned() % 2:
        raise _NotKeptError(f"rotary positions turn an odd number of its units, {rope.turned()}")
    if rope.turned(rope.factor) == rope.factor * rope.turned():
        return
    for key in _FRACTIONS:
        if said.get(key):  # half a unit more, so that no rounding makes it less
            yield f"{prefix}{key}", (rope.factor * rope.turned() + 0.5) / (rope.factor * rope.size)


def _unchanged(_rope: _Rope, *, is_nested: bool) -> _Keys:
    """Yield nothing: the frequency of pair i depends on i / size only."""
    del is_nested
    yield from ()


def _longrope(rope: _Rope, *, is_nested: bool) -> _Keys:
    """Yield the factors of the frequencies: pair k i has that of pair i."""
    del is_nested
    for key in ("short_factor", "long_factor"):
        if isinstance(factors := rope.said.get(key), list):
            yield key, [factor for factor in factors for _ in range(rope.factor)]


def _dynamic(_rope: _Rope, *, is_nested: bool) -> _Keys:
    del is_nested
    raise _NotKeptError(
        "with `dynamic` rotary positions, the frequencies beyond the trained length depend on it in a way that no "
        "other base gives"
    )


def _yarn(rope: _Rope, *, is_nested: bool) -> _Keys:
    """Yield the numbers of rotations between which frequencies are interpolated (arXiv 2309.00071, equation 23).

    The pairs that they stand for are rounded to whole ones, unless `truncate` is false.
    """
    base = rope.said.get("rope_theta")
    length = rope.said.get("original_max_position_embeddings") or rope.said.get("max_position_embeddings")
    if not base or not length:
        raise _NotKeptError("`yarn` needs `rope_theta` and `original_max_position_embeddings` in config.json")
    rotations = {"beta_fast": rope.said.get("beta_fast") or 32, "beta_slow": rope.said.get("beta_slow") or 1}
    truncates = is_nested or rope.said.get("truncate", True)  # transformers looks for it outside of nested sections

    def bounds(factor: int) -> tuple[float, float]:
        turned = factor * rope.turned()  # as the changed fraction makes it
        low, high = (
            turned * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base)) for turns in rotations.values()
        )
        if truncates:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, turned - 1)

    before, after = bounds(1), bounds(rope.factor)
    if all(math.isclose(rope.factor * old, new, rel_tol=1e-12) for old, new in zip(before, after, strict=True)):
        return
    if is_nested:
        raise _NotKeptError("`yarn` rounds the pairs between which it interpolates to whole ones")
    yield "truncate", False
    for key, pair in zip(rotations, before, strict=True):
        yield key, length / (2 * math.pi * base ** (2 * pair / rope.turned()))


_KINDS: Mapping[str, Callable[..., _Keys]] = {
    **dict.fromkeys(("default", "linear", "llama3", "proportional", "mrope"), _unchanged),
    **dict.fromkeys(("longrope", "su"), _longrope),
    "yarn": _yarn,
    "dynamic": _dynamic,
}
