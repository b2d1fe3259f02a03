"""What `--json` prints of recipes, and of trying them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mupscale_cli.architecture.types import Recipe
from mupscale_cli.record.figures import figure

if TYPE_CHECKING:
    from mupscale_cli.record.types import Figure
    from mupscale_cli.tasks.check import RecipeCheck


@dataclass(frozen=True, slots=True)
class Tried:
    """A recipe tried on one model.

    Attributes:
        label: which model.
        checked: what that found; None where it came to nothing.
        problem: why it came to nothing.
    """

    label: str
    checked: RecipeCheck | None
    problem: str | None = None

    @property
    def passed(self) -> bool:
        return self.checked is not None and self.checked.passed


def recipe_document(recipe: Recipe, growing: Mapping[str, Sequence[str]], costs: Mapping[str, str]) -> dict[str, Any]:
    """A recipe as plain values.

    Args:
        recipe: which.
        growing: the parts of a model that grow with each axis.
        costs: what twice of each axis makes of a checkpoint; empty without one.
    """
    tie = recipe.tie
    return {
        "name": recipe.name,
        "about": recipe.about,
        "model_types": list(recipe.model_types),
        "file": recipe.file,
        "sha256": recipe.digest,
        "axes": [
            {
                "name": axis.name,
                "about": axis.about,
                "size": axis.text.value,
                "by_factor": axis.name in recipe.widen,
                "fixed": recipe.fixed.get(axis.name),
                "grows": list(growing[axis.name]),
                "doubled": costs.get(axis.name),
            }
            for axis in recipe.axes
        ],
        "groups": {name: list(members) for name, members in recipe.groups.items()},
        "linked": {link.axis: link.text.value for link in recipe.links},
        "tie": None if tie is None else list(tie.ways),
        "tensors": [
            {
                "pattern": rule.text.value,
                "choices": [
                    {"layout": choice.text.value, "when": choice.condition.value if choice.condition else None}
                    for choice in rule.choices
                ],
            }
            for rule in recipe.tensors
        ],
        "definitions": {name: text.value for name, _, text in recipe.definitions},
    }


def check_document(recipe: Recipe, num_tensors: int | None, tried: Sequence[Tried]) -> dict[str, Any]:
    """What checking a recipe found.

    Args:
        recipe: which.
        num_tensors: of the checkpoint that it was held against; None without one.
        tried: the models that it was tried on.
    """
    return {
        "recipe": recipe.name,
        "file": recipe.file,
        "right": all(one.passed for one in tried),
        "axes": len(recipe.axes),
        "rules": len(recipe.tensors),
        "tensors": num_tensors,
        "models": [_tried_document(one) for one in tried],
    }


def _tried_document(one: Tried) -> dict[str, Any]:
    checked = one.checked
    return {
        "model": one.label,
        "right": one.passed,
        "problem": one.problem,
        "mistakes": list(checked.mistakes) if checked else [],
        "worst": _plain(checked.worst) if checked else None,
        "trials": [
            {"factors": dict(trial.factors), "tie": trial.tie, "error": _plain(trial.error), "problem": trial.problem}
            for trial in (checked.trials if checked else ())
        ],
    }


def _plain(value: float | None) -> Figure | None:
    return None if value is None else figure(value)
