"""Find how an architecture computes a size that its config leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def derived_size(
    measure: Callable[[Mapping[str, Any]], int], config: Mapping[str, Any], key: str, others: Sequence[str]
) -> str | None:
    """Return an expression for the size that an architecture uses if a key is absent.

    Args:
        measure: returns the size under a config; any error means that the config is impossible.
        config: the config of the tiny model.
        key: the key to leave out.
        others: keys that may determine the size.

    Returns:
        A product of keys with an integer factor, divided by at most one key. None if the key is required or the size
        has no such expression.
    """
    without = {name: value for name, value in config.items() if name != key}
    try:
        size = measure(without)
    except Exception:  # noqa: BLE001 (the key is required)
        return None
    numerator, denominator = [], []
    for other in others:
        value = config.get(other)
        if other == key or type(value) is not int:
            continue
        try:
            doubled = measure({**without, other: 2 * value})
        except Exception:  # noqa: BLE001, S112 (a key that cannot move alone does not determine the size)
            continue
        if doubled == 2 * size:
            numerator.append(other)
        elif 2 * doubled == size:
            denominator.append(other)
        elif doubled != size:
            return None
    if not numerator:
        return None
    above, below = (math.prod(config[name] for name in names) for names in (numerator, denominator))
    if size * below % above or len(denominator) > 1:
        return None
    factor = size * below // above
    product = " * ".join(([str(factor)] if factor != 1 else []) + numerator)
    return f"{product} // {denominator[0]}" if denominator else product
