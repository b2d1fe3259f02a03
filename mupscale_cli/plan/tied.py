"""Handling readouts that share the embedding's tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mupscale_cli.architecture.matching import used_prefixes
from mupscale_cli.architecture.types import TIES, Recipe
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.conditions import environment, evaluate_located
from mupscale_cli.plan.types import TensorPlan

TIE_KEY = "tie_word_embeddings"


def resolve_tie(recipe: Recipe, config: Mapping[str, Any], names: Sequence[str], requested: str | None) -> str | None:
    """Choose how to scale a readout that shares the embedding.

    Args:
        recipe: recipe of the architecture.
        config: config.json, or an empty mapping.
        names: names of the checkpoint's tensors.
        requested: a key of `TIES`. Default: the first way that the recipe allows.

    Returns:
        A key of `TIES`, or None if the readout does not share the embedding.

    Raises:
        PlanError: the requested way is unknown, or the recipe or the checkpoint does not allow it.
    """
    if requested is not None and requested not in TIES:
        raise PlanError(f"unknown `--tie {requested}`", hint=f"known: {', '.join(TIES)}")
    rule = recipe.tie
    shares = rule is not None and evaluate_located(rule.when, environment(recipe, config, names), rule.text.error)
    if rule is None or not shares:
        if requested is not None:
            raise PlanError(
                f"`--tie {requested}` does not apply: the readout of this checkpoint does not share the embedding",
                hint="omit `--tie`",
            )
        return None
    if requested is not None and requested not in rule.ways:
        raise PlanError(
            f"the recipe `{recipe.name}` does not allow `--tie {requested}`", hint=f"allowed: {', '.join(rule.ways)}"
        )
    return requested or rule.ways[0]


def absent_tensors(recipe: Recipe, names: Sequence[str]) -> dict[str, str]:
    """Map the name of each tied tensor that is not stored to the name of a stored one whose data it shares.

    Any member of a group of tied tensors may be the stored one: some libraries write the readout and not the embedding.
    """
    assert recipe.tie is not None
    present = frozenset(names)
    prefixes = used_prefixes(recipe, names)
    pairs = [(name.format_map(prefixes), source.format_map(prefixes)) for name, source in recipe.tie.shares]
    absent: dict[str, str] = {}
    for name, source in (*((source, name) for name, source in pairs), *pairs):
        stored = absent.get(source, source)
        if name not in present and stored in present:
            absent.setdefault(name, stored)
    return absent


def untie_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Set `tie_word_embeddings` to false at the top level and in every section that has the key."""
    nested = {
        key: untie_config(value) for key, value in config.items() if isinstance(value, Mapping) and TIE_KEY in value
    }
    return {**config, **nested, TIE_KEY: False}


def read_shared(plan: TensorPlan, shared: Mapping[str, str]) -> TensorPlan:
    """Make the plan of an untied tensor read the tensor that the checkpoint has."""
    name = shared.get(plan.source.name)
    return plan if name is None else replace(plan, source=replace(plan.source, name=name))
