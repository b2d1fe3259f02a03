"""How an architecture computes a size that its config leaves out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def derived_size(
    measure: Callable[[Mapping[str, Any]], int], config: Mapping[str, Any], key: str, others: Sequence[str]
) -> str | None:
    """An expression for the size that is used where a key is absent.

    Args:
        measure: the size under a config; whatever it raises, the key cannot be absent.
        config: of the tiny model.
        key: the key to leave out.
        others: keys that the size may be computed from.

    Returns:
        A product of keys over at most one other, with a whole factor; None where it is no such thing.
    """
    without = {name: value for name, value in config.items() if name != key}
    try:
        size = measure(without)
    except Exception:  # noqa: BLE001 (it cannot be absent)
        return None
    above, below = [], []
    for other in others:
        value = config.get(other)
        if other == key or type(value) is not int:
            continue
        try:
            doubled = measure({**without, other: 2 * value})
        except Exception:  # noqa: BLE001, S112 (it does not depend on what cannot move alone)
            continue
        if doubled == 2 * size:
            above.append(other)
        elif 2 * doubled == size:
            below.append(other)
        elif doubled != size:
            return None
    if not above:
        return None
    top, bottom = math.prod(config[name] for name in above), math.prod(config[name] for name in below)
    if size * bottom % top or len(below) > 1:
        return None
    factor = size * bottom // top
    product = " * ".join(([str(factor)] if factor != 1 else []) + above)
    return f"{product} // {below[0]}" if below else product
