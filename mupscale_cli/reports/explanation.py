"""What is said about a tensor: its dimensions, formulas and values, and its hyperparameters. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from mupscale_cli.optimizers.rules.powers import UNCHANGED, Powers, Ratios
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.reports.formulas import (
    COUNT,
    Monomial,
    Part,
)


@dataclass(frozen=True, slots=True)
class Item:
    """An axis, a fixed size or a segment of a dimension.

    Attributes:
        depth: nesting depth in segments.
        what: name of the axis, the fixed size, or `part N`.
        size: number of units before widening, None if unknown.
        factor: factor of the axis, 1 if it is not widened; None if unknown.
        words: description of the axis and of its copies.
    """

    depth: int
    what: str
    size: int | None
    factor: int | None
    words: str

    def as_record(self) -> dict[str, Any]:
        """Return the item as `--json` prints it."""
        return {"what": self.what, "size": self.size, "factor": self.factor, "words": self.words}


@dataclass(frozen=True)
class Explanation:
    """How a tensor, or all tensors of a kind, are widened.

    Attributes:
        names: names of the wide tensors, or the pattern of a rule.
        rule: pattern of the rule that they match.
        layout: layout in the recipe; `keep` copies the tensor, `omit` drops it.
        when: condition under which the recipe chooses this layout, None if it has no alternative.
        shapes: shapes before and after, None without a checkpoint.
        dtype: dtype of the narrow tensor, None without a checkpoint.
        dims: items of each dimension.
        parts: formulas of c and m.
        factors: factors of the axes; None if unknown.
        bare: axes that a bare `--factor` widens.
        remarks: clauses on everything else that happens to the tensor, and why.
        further: values of what formulas contain in addition to copies: size ratios, and `NORMS`.
    """

    names: tuple[str, ...]
    rule: str
    layout: str
    when: str | None
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None
    dtype: str | None
    dims: tuple[tuple[Item, ...], ...]
    parts: tuple[Part, ...]
    factors: Mapping[str, int] | None
    bare: tuple[str, ...]
    remarks: tuple[str, ...]
    further: Mapping[str, float | Fraction] = field(default_factory=dict)

    @property
    def is_widened(self) -> bool:
        """Return whether an axis of the tensor grows, or may grow if the factors are unknown."""
        powers = (name for part in self.parts for name in (*part.m.powers, *part.c.powers))
        return any(self.factors is None or name.startswith(COUNT) or self.factors.get(name, 1) > 1 for name in powers)

    def scales(self, part: Part) -> tuple[float, float] | None:
        """Return c and m of a part; None if the factors are unknown."""
        return None if self.values is None else (part.c.value(self.values), part.m.value(self.values))

    @property
    def values(self) -> Mapping[str, int | float | Fraction] | None:
        """Values of everything that formulas contain; None if the factors are unknown."""
        return None if self.factors is None else {**self.factors, **self.further}

    def consequences(self, part: Part) -> tuple[Consequence, ...]:
        """Return the hyperparameter multipliers of a part, for each optimizer that accepts such a tensor."""
        rules = [rule for rule in OPTIMIZERS.values() if not rule.matrices_only or len(self.dims) == 2]
        ratios = UNCHANGED if self.shapes is None else Ratios.of(*self.shapes)
        return tuple(_consequences(rules, part, self.values, ratios))

    def bare_factor(self, part: Part) -> tuple[str, str]:
        """Return formulas in K of c and m with `--factor K`."""

        def formula(monomial: Monomial) -> str:
            power = sum((monomial.powers.get(name, Fraction(0)) for name in self.bare), Fraction(0))
            return str(Monomial({"K": power} if power else {})).replace("k(K)", "K")

        return formula(part.c), formula(part.m)

    def as_record(self) -> dict[str, Any]:
        """Return the explanation as `--json` prints it."""
        return {
            "names": list(self.names),
            "rule": self.rule,
            "layout": self.layout,
            "when": self.when,
            "dtype": self.dtype,
            "shape": None if self.shapes is None else list(self.shapes[0]),
            "wide_shape": None if self.shapes is None else list(self.shapes[1]),
            "dims": [[item.as_record() for item in dim] for dim in self.dims],
            "factors": None if self.factors is None else dict(self.factors),
            "parts": [self._part_record(part) for part in self.parts],
            "remarks": list(self.remarks),
        }

    def _part_record(self, part: Part) -> dict[str, Any]:
        scales = self.scales(part)
        return {
            "coefficient": {"formula": str(part.c), "value": scales and scales[0]},
            "multiplicity": {"formula": str(part.m), "value": scales and scales[1]},
            "hyperparameters": [consequence.as_record() for consequence in self.consequences(part)],
        }


@dataclass(frozen=True)
class Consequence:
    """Multipliers of a tensor's hyperparameters under some optimizers.

    Attributes:
        rules: rules of the optimizers that share these multipliers.
        formulas: formulas of the multipliers of `lr`, `eps` and `weight_decay`, if the optimizer has them.
        values: values of the formulas, None if the factors are unknown.
    """

    rules: tuple[OptimizerRule, ...]
    formulas: Mapping[str, str]
    values: Mapping[str, float] | None

    @property
    def optimizers(self) -> tuple[str, ...]:
        return tuple(rule.name for rule in self.rules)

    def as_record(self) -> dict[str, Any]:
        """Return the multipliers as `--json` prints them."""
        return {
            "optimizers": list(self.optimizers),
            **{
                key: {"formula": text, "value": self.values and self.values[key]} for key, text in self.formulas.items()
            },
        }


def _consequences(
    known: Iterable[OptimizerRule],
    part: Part,
    factors: Mapping[str, int | float | Fraction] | None,
    ratios: Ratios,
) -> Iterator[Consequence]:
    """Yield the hyperparameter multipliers of a part, once for optimizers that share them."""
    by_formulas: dict[tuple[tuple[str, Powers], ...], list[OptimizerRule]] = {}
    for rule in known:
        by_formulas.setdefault(tuple(rule.formulas(rule.decoupled).items()), []).append(rule)
    for formulas, rules in by_formulas.items():
        values = None
        if factors is not None:
            c, m = part.c.value(factors), part.m.value(factors)
            values = {key: formula(c, m, ratios) for key, formula in formulas}
        yield Consequence(tuple(rules), {key: str(formula) for key, formula in formulas}, values)
