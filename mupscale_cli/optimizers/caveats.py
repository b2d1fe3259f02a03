"""What is not exact when a widened model trains: one list for `hparams`, growing and the trainers. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mupscale_cli.optimizers.multipliers import CLIP_WEIGHT, ScaledTensor, is_exact, spreads
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.text import listed, starred

MAX_NAMED = 4


_WORDS = {
    "lr": "learning rates",
    "eps": "values of eps",
    "weight_decay": "weight decays",
    CLIP_WEIGHT: "weights in the clipped norm",
}


def caveats(
    rule: OptimizerRule,
    tensors: Iterable[ScaledTensor],
    decoupled: bool | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Say in sentences what is not exact when an optimizer trains widened tensors; see `spreads` for the arguments."""
    tensors = list(tensors)
    found = list(inexact_parts(rule, tensors, decoupled, settings))
    new = [tensor.name for tensor in tensors if tensor.block is not None and tensor.block.is_new]
    if new:
        found.append(
            f"{listed(new, MAX_NAMED)} are in new blocks, which learn from the first step on; the other tensors take "
            "the same steps as before only while these are frozen"
        )
    return (*found, *rule.caveats)


def inexact_parts(
    rule: OptimizerRule,
    tensors: Iterable[ScaledTensor],
    decoupled: bool | None = None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[str, ...]:
    """Say which tensors have parts that no single value of a setting fits, a sentence for each set of settings.

    Such a tensor is a fused one some of whose segments grow otherwise than the rest, or not at all.
    """
    by_settings: dict[tuple[str, ...], list[tuple[ScaledTensor, dict[str, float]]]] = {}
    for tensor in tensors:
        if (
            len(tensor.parts) > 1
            and rule.trains(tensor.shape)
            and (found := spreads(tensor, rule, decoupled, settings))
        ):
            by_settings.setdefault(tuple(found), []).append((tensor, found))
    return tuple(_inexact_text(keys, members) for keys, members in by_settings.items())


def _inexact_text(keys: Sequence[str], members: Sequence[tuple[ScaledTensor, Mapping[str, float]]]) -> str:
    """Say what some tensors need that have the same inexact settings, and what of their training is exact."""
    named = listed(dict.fromkeys(starred(tensor.name) for tensor, _ in members), MAX_NAMED)
    needs = " and ".join(
        f"{_WORDS.get(key, f'values of `{key}`')} up to {max(found[key] for _, found in members):.3g} times as large"
        for key in keys
    )
    text = f"{named} have parts that need separate {needs}; the values are those of the first part"
    if set(keys) == {CLIP_WEIGHT}:
        return f"{text}, and steps are exact unless gradients are clipped"
    if "lr" not in keys and "eps" in keys:
        text += ". Learning rates are exact, so steps differ only where eps is not small beside the gradients"
    return f"{text}{_remedy([tensor for tensor, _ in members])}"


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
    """Return how to avoid tensors whose parts need separate settings, to append to a sentence; may be empty."""
    matrices = [tensor for tensor in inexact if len(tensor.shape) > 1]
    if not matrices:
        return "; freeze them to take the same steps as before"
    able = [rule.title for rule in OPTIMIZERS.values() if all(is_exact(tensor, rule) for tensor in matrices)]
    return f"; with {' or '.join(able)}, one set of values is right for every part of a matrix" if able else ""
