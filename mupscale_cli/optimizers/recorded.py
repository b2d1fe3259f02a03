"""What a record says of each tensor's training: coefficients, multiplicities and shapes. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mupscale_cli.optimizers.multipliers import ScaledTensor

if TYPE_CHECKING:
    from mupscale_cli.record.types import Growth


def scaled_tensors(record: Growth) -> tuple[ScaledTensor, ...]:
    """What the record says of every wide tensor, as far as its training is concerned, by its name in the model."""
    called = record["called"]
    return tuple(
        ScaledTensor(
            called.get(name, name),
            tuple((part["coefficient"], part["multiplicity"]) for part in rule["parts"]),
            tuple(rule["shape"]),
            tuple(rule["wide_shape"]),
            rule["offset"],
        )
        for rule in record["rules"]
        for name in rule["tensors"]
    )
