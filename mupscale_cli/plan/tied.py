"""Readouts that share the embedding: what is done about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mupscale_cli.architecture.types import TIES, Recipe
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.conditions import environment, evaluated
from mupscale_cli.plan.types import TensorPlan

TIE_KEY = "tie_word_embeddings"


def resolve_tie(recipe: Recipe, config: Mapping[str, Any], names: Sequence[str], asked: str | None) -> str | None:
    """What is done about a readout that shares the embedding; None where there is none."""
    if asked is not None and asked not in TIES:
        raise PlanError(f"`--tie {asked}`: there is no such way", hint=f"known: {', '.join(TIES)}")
    rule = recipe.tie
    shares = rule is not None and evaluated(rule.when, environment(recipe, config, names), rule.text.error)
    if rule is None or not shares:
        if asked is not None:
            raise PlanError(
                f"`--tie {asked}`: the readout of this checkpoint does not share the embedding, so it takes its factor "
                "itself"
            )
        return None
    if asked is not None and asked not in rule.ways:
        raise PlanError(
            f"`--tie {asked}` is not possible with `{recipe.name}`",
            hint=f"this architecture allows: {', '.join(rule.ways)}",
        )
    return asked or rule.ways[0]


def untied_tensors(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """The tensors to write where the checkpoint has one for several, and whose data they take."""
    assert recipe.tie is not None
    present = frozenset(names)
    found = {}
    for prefixes in recipe.prefixes:
        for name, source in recipe.tie.shares:
            if source.format_map(prefixes) in present and name.format_map(prefixes) not in present:
                found[name.format_map(prefixes)] = source.format_map(prefixes)
    return found


def with_untied(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that says that embedding and readout are two tensors, in every section that said something of it."""
    nested = {
        key: with_untied(value) for key, value in config.items() if isinstance(value, Mapping) and TIE_KEY in value
    }
    return {**config, **nested, TIE_KEY: False}


def reading_shared(plan: TensorPlan, shared: Mapping[str, str]) -> TensorPlan:
    """A plan that reads the tensor which the checkpoint has."""
    name = shared.get(plan.source.name)
    return plan if name is None else replace(plan, source=replace(plan.source, name=name))
