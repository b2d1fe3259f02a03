"""Read the scaling of each tensor from a record: coefficients, multiplicities and shapes. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mupscale_cli.optimizers.multipliers import ScaledTensor
from mupscale_cli.plan.types import Block

if TYPE_CHECKING:
    from mupscale_cli.record.types import Growth


def scaled_tensors(record: Growth) -> tuple[ScaledTensor, ...]:
    """Return the recorded scaling of every wide tensor, under the tensor's name in the model."""
    called = record["called"]
    return tuple(
        ScaledTensor(
            called.get(name, name),
            tuple((part["coefficient"], part["multiplicity"]) for part in rule["parts"]),
            tuple(rule["shape"]),
            tuple(rule["wide_shape"]),
            rule["offset"],
            None if rule["block"] is None else Block(**rule["block"]),
        )
        for rule in record["rules"]
        for name in rule["tensors"]
    )
