"""What a record says of each tensor's training: coefficients, multiplicities and shapes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.multipliers import Scaled

_LARGEST = 2**63
_LARGEST_SCALE = 1e60  # whose powers are still numbers


def scaled_tensors(record: Mapping[str, Any]) -> tuple[Scaled, ...]:
    """What the record says of every wide tensor, as far as its training is concerned, by its name in the model.

    Raises:
        CheckpointError: the record is damaged.
    """
    try:
        called = {str(name): str(parameter) for name, parameter in dict(record.get("called", {})).items()}
        return tuple(
            Scaled(
                called.get(str(name), str(name)),
                _scales(rule["parts"]),
                _shape(rule["shape"]),
                _shape(rule["wide_shape"]),
                int(rule["offset"]),
            )
            for rule in record["rules"]
            for name in rule["tensors"]
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"the record of the widening is damaged: {error!r}", hint="widen again") from error


def _scales(parts: Any) -> tuple[tuple[float, int], ...]:
    if not isinstance(parts, list) or not parts:
        raise ValueError("a rule without parts")
    return tuple(map(_scale, parts))


def _scale(part: Mapping[str, Any]) -> tuple[float, int]:
    c, m = float(part["coefficient"]), int(part["multiplicity"])
    if not (1 / _LARGEST_SCALE < c < _LARGEST_SCALE and 1 <= m < _LARGEST):
        raise ValueError(f"coefficient {c:g} and multiplicity {part['multiplicity']!r:.20}")
    return c, m


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not all(type(size) is int and 0 <= size < _LARGEST for size in sizes):
        raise ValueError("a shape is a list of whole numbers")
    return tuple(sizes)
