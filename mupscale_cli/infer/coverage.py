"""Compare the model types of the installed transformers with the recipes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from mupscale_cli.architecture.loading import matched_values
from mupscale_cli.architecture.refusals import refusal_of
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.drafting import draft_for
from mupscale_cli.verification.transformers import import_transformers

_MAPPING = re.compile(r"MODEL(?:_FOR)?_(\w+?)_?MAPPING_NAMES|MODEL_(MAPPING)_NAMES")
BASE = "base"  # the mapping of models without a head, which has every type

Outcome = Literal["recipe", "refused", "drafted", "failed", "none"]


@dataclass(frozen=True)
class CoveredType:
    """What mupscale has for a model type of transformers.

    Attributes:
        name: the model type.
        tasks: the mappings that have it, such as `causal-lm`; `base` if no other has it.
        outcome: `recipe`; `refused`, which refusals.yaml explains; `none`: `widen` drafts one. If that was tried:
            `drafted` or `failed`.
        detail: the recipes, the axes of the draft, or the reason.
    """

    name: str
    tasks: tuple[str, ...]
    outcome: Outcome
    detail: str = ""


def model_types() -> dict[str, tuple[str, ...]]:
    """Return the model types of the installed transformers, each with the tasks that it has a class for.

    Raises:
        MupscaleError: transformers is not installed.
    """
    import_transformers()
    from transformers.models.auto import modeling_auto

    tasks: dict[str, list[str]] = {}
    for name in sorted(vars(modeling_auto)):
        if match := _MAPPING.fullmatch(name):
            task = BASE if match[2] or not match[1] else match[1].lower().replace("_", "-")
            for model_type in getattr(modeling_auto, name):
                tasks.setdefault(model_type, []).append(task)
    return {name: tuple(each for each in found if each != BASE) or (BASE,) for name, found in sorted(tasks.items())}


def coverage(tasks: Iterable[str] = ()) -> tuple[CoveredType, ...]:
    """Return what mupscale has for every model type of the installed transformers, by name.

    Args:
        tasks: only types with a class for one of these tasks. Default: all.

    Raises:
        MupscaleError: transformers is not installed, or a task does not exist.
    """
    types, wanted = model_types(), set(tasks)
    known = {task for found in types.values() for task in found}
    if unknown := sorted(wanted - known):
        raise MupscaleError(f"transformers has no task `{unknown[0]}`", hint=f"known: {', '.join(sorted(known))}")
    return tuple(_covered(name, found) for name, found in types.items() if not wanted or wanted & set(found))


def _covered(name: str, tasks: tuple[str, ...]) -> CoveredType:
    from transformers.models.auto import configuration_auto

    classes = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    own = classes.get(name)  # a class of two names saves one of them, as GPT-SW3 saves `gpt2`
    names = [name, *(other for other, config in classes.items() if config == own and other != name)]
    recipes = [
        recipe
        for each in names
        for value, found in matched_values().items()
        if fnmatchcase(each, value)
        for recipe in found
    ]
    if recipes:
        return CoveredType(name, tasks, "recipe", ", ".join(dict.fromkeys(recipes)))
    if (refusal := refusal_of(name)) is not None:
        return CoveredType(name, tasks, "refused", f"{refusal.part}: {refusal.why}")
    return CoveredType(name, tasks, "none")


def with_drafts(types: Iterable[CoveredType]) -> Iterator[CoveredType]:
    """Yield the types, after drafting a recipe for each that has none and is not refused; drafts are kept.

    Args:
        types: the types.
    """
    for each in types:
        if each.outcome != "none":
            yield each
            continue
        try:
            draft = draft_for({"model_type": each.name})
        except MupscaleError as error:
            yield replace(each, outcome="failed", detail=error.message)
            continue
        if draft is not None:
            axes = [name for name in draft.axis_names if name not in draft.fixed]
            yield replace(each, outcome="drafted", detail=f"widens {', '.join(axes)}")
