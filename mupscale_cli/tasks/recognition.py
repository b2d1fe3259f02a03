"""Recognize what a checkpoint's config does not say: its model type by class or tensors, its sizes by shapes."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mupscale_cli.architecture.expressions import look_up
from mupscale_cli.architecture.implied import implied_patterns
from mupscale_cli.architecture.loading import (
    identifying_recipes,
    load_recipe,
    matched_values,
    read_patterns,
    recipe_files,
)
from mupscale_cli.architecture.matching import match_rules, may_fit
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.architecture.wrappers import find_wrapping, strip_wrappers
from mupscale_cli.checkpoints.config import architecture_of, untagged
from mupscale_cli.checkpoints.libraries import LIBRARIES
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import MupscaleError
from mupscale_cli.plan import make_plan
from mupscale_cli.plan.shapes import read_config

_TYPE = "model_type"
_VERSION = "transformers_version"
_log = logging.getLogger(__name__)
_CLASS = re.compile(r"(\w+?)(?:For[A-Z]\w*|LMHeadModel|DoubleHeadsModel|EncoderModel|PreTrainedModel|Model)")


def missing_settings(checkpoint: Checkpoint, name: str | Path | None = None) -> dict[str, Any]:
    """Return the config keys that a checkpoint's config lacks and its tensors show.

    Args:
        checkpoint: the checkpoint; its config may be None.
        name: name or file of its recipe, if the user named one.

    Raises:
        PlanError: there is no config, and the shapes do not tell a size that the recipe needs.
    """
    config = checkpoint.config or {}
    if any(library.key in config for library in LIBRARIES):
        return {}
    if name is None:
        return {} if checkpoint.config is None else _recognized(checkpoint)
    recipe = load_recipe(name, config)
    types = () if recipe.path else (str(name),) if name in matched_values() else recipe.model_types
    found = _first(types)
    if checkpoint.config is not None and not checkpoint.settings:
        return found
    return {**found, **read_config(recipe, checkpoint.specs, {**config, **found})}


def class_defaults(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the keys that transformers gives a config by default, dotted within sections, without those that it has.

    They are what its class of the config would save. None are returned if there is no such class, or no transformers.
    """
    config = checkpoint.config or {}
    if config.get(_TYPE) is None or find_spec("transformers") is None:
        return {}
    from mupscale_cli.verification.transformers import import_transformers  # imports torch

    try:
        whole = import_transformers().AutoConfig.for_model(**untagged(config)).to_diff_dict()
    except Exception as error:  # noqa: BLE001 (the class may refuse the config in its own way; loading the model tells)
        _log.debug("the defaults of the class are unknown: %s", error)
        return {}
    return {key: value for key, value in _flat(whole) if key != _VERSION and look_up(key, config) is None}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of a config that are not null, dotted within sections."""
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value


def _recognized(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the model type that `architectures` names or, without it, the only one that fits the tensors."""
    config = checkpoint.config or {}
    match = _CLASS.fullmatch(architecture_of(config) or "")
    if match is not None:
        return _first(each for each in matched_values() if _plain(each) == _plain(match[1]))
    recipes = fitting_recipes(checkpoint)
    types = recipes[0].model_types if len(recipes) == 1 else ()
    first = _plain(next(iter(checkpoint.tensors)).partition(".")[0])
    return _first(each for each in types if len(types) == 1 or _plain(each) == first)


def _first(types: Iterable[str]) -> dict[str, Any]:
    first = next(iter(types), None)
    return {} if first is None else {_TYPE: first}


def _plain(name: str) -> str:
    return re.sub(r"[_-]", "", name).lower()


def stored_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return a checkpoint's config; None if the user stated all of its keys."""
    config = checkpoint.config
    return None if config is None or config.keys() <= {key.split(".")[0] for key in checkpoint.settings} else config


def identified_recipe(checkpoint: Checkpoint) -> Recipe | None:
    """Return the only built-in recipe that the tensors of a checkpoint without a config identify, or None."""
    if stored_config(checkpoint) is not None:
        return None
    recipes = [recipe for name in identifying_recipes() if (recipe := _fitting(name, checkpoint, None)) is not None]
    return recipes[0] if len(recipes) == 1 else None


def fitting_recipes(checkpoint: Checkpoint) -> tuple[Recipe, ...]:
    """Return the built-in recipes whose rules fit a checkpoint's tensors and, if it has a config, their sizes.

    The most general one is the first. The ends of the names rule most recipes out before they are loaded.
    """
    config = stored_config(checkpoint)
    implied = implied_patterns()
    names = [name for name in map(strip_wrappers, checkpoint.tensors) if not any(p.may_match(name) for p in implied)]
    sifted = (file.stem for file in recipe_files() if _may_fit(file, names, config))
    fitting = [recipe for name in sifted if (recipe := _fitting(name, checkpoint, config)) is not None]
    return tuple(sorted(fitting, key=lambda recipe: -len(recipe.model_types)))


def _may_fit(file: Path, names: Iterable[str], config: Mapping[str, Any] | None) -> bool:
    try:
        return may_fit(read_patterns(file, config), names)
    except MupscaleError:
        return False  # a part that the config names does not go with this recipe


def _fitting(name: str, checkpoint: Checkpoint, config: Mapping[str, Any] | None) -> Recipe | None:
    """Return a built-in recipe if it fits a checkpoint."""
    try:
        recipe = load_recipe(name, config)
        if not (recipe.tensor_patterns or recipe.model_types):
            return None
        names = tuple(checkpoint.tensors)
        matches = match_rules(recipe, tuple(map(find_wrapping(recipe, names).plain, names)))
        if all(match.rule.pattern.text == "**" for match in matches.values()):
            return None  # a rule for any name tells nothing
        if config is not None:
            make_plan(recipe, checkpoint.specs, config, max_shard_bytes=None)
    except MupscaleError:
        return None
    return recipe
