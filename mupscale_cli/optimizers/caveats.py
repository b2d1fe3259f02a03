"""What is not exact when a widened model trains: one list for `hparams`, growing and the trainers. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from mupscale_cli.optimizers.multipliers import ScaledTensor, is_exact
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.text import listed

MAX_NAMED = 4


def caveats(rule: OptimizerRule, tensors: Iterable[ScaledTensor]) -> tuple[str, ...]:
    """Say in sentences what is not exact when an optimizer trains widened tensors."""
    tensors = list(tensors)
    found = []
    inexact = [tensor for tensor in tensors if rule.trains(tensor.shape) and not is_exact(tensor, rule)]
    if inexact:
        named = listed([tensor.name for tensor in inexact], MAX_NAMED)
        rates = [[rule.lr(c, m) for c, m in tensor.parts] for tensor in inexact]
        ratio = max(max(each) / min(each) for each in rates)
        found.append(
            f"{named} have parts that need separate learning rates, up to {ratio:.3g} times as large; the values are "
            f"those of the first part{_remedy(inexact)}"
        )
    new = [tensor.name for tensor in tensors if tensor.block is not None and tensor.block.is_new]
    if new:
        found.append(
            f"{listed(new, MAX_NAMED)} are in new blocks, which learn from the first step on; the other tensors take "
            "the same steps as before only while these are frozen"
        )
    return (*found, *rule.caveats)


def warn_inexact(trained: Iterable[tuple[OptimizerRule, Iterable[ScaledTensor]]]) -> None:
    """Issue the caveats as Python warnings, which are shown once.

    Args:
        trained: optimizers, each with the tensors that it trains; those of several groups are taken together.
    """
    tensors: dict[str, tuple[OptimizerRule, list[ScaledTensor]]] = {}
    for rule, members in trained:
        tensors.setdefault(rule.name, (rule, []))[1].extend(members)
    for text in dict.fromkeys(text for rule, members in tensors.values() for text in caveats(rule, members)):
        warnings.warn(text, stacklevel=3)


def _remedy(inexact: Sequence[ScaledTensor]) -> str:
    """Return how to avoid tensors whose parts need separate learning rates, to append to a sentence; may be empty."""
    matrices = [tensor for tensor in inexact if len(tensor.shape) > 1]
    if not matrices:
        return "; freeze them to take the same steps as before"
    able = [rule.title for rule in OPTIMIZERS.values() if all(is_exact(tensor, rule) for tensor in matrices)]
    return f"; with {' or '.join(able)}, one rate is right for every matrix" if able else ""
