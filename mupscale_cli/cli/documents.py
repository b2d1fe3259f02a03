"""Build the JSON documents of recipes and of checking them."""

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
class ModelTrial:
    """The outcome of trying a recipe on one model.

    Attributes:
        label: description of the model.
        checked: the widenings that were tried and their errors; None if the check could not run.
        problem: why the check could not run.
    """

    label: str
    checked: RecipeCheck | None
    problem: str | None = None

    @property
    def passed(self) -> bool:
        return self.checked is not None and self.checked.passed


def recipe_document(recipe: Recipe, growing: Mapping[str, Sequence[str]], costs: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON document of a recipe.

    Args:
        recipe: the recipe.
        growing: the parts of a model that grow with each axis, by axis.
        costs: the effect of doubling each axis on a checkpoint's size, by axis; empty without a checkpoint.
    """
    tie = recipe.tie
    return {
        "name": recipe.name,
        "about": recipe.about,
        "match": {key: list(values) for key, values in recipe.keys.items()},
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


def check_document(recipe: Recipe, num_tensors: int | None, trials: Sequence[ModelTrial]) -> dict[str, Any]:
    """Return the JSON document of a recipe's check.

    Args:
        recipe: the recipe.
        num_tensors: number of tensors of the checkpoint that was compared with the recipe; None without one.
        trials: the models that the recipe was tried on.
    """
    return {
        "recipe": recipe.name,
        "file": recipe.file,
        "right": all(trial.passed for trial in trials),
        "axes": len(recipe.axes),
        "rules": len(recipe.tensors),
        "tensors": num_tensors,
        "models": [_trial_document(trial) for trial in trials],
    }


def _trial_document(trial: ModelTrial) -> dict[str, Any]:
    checked = trial.checked
    return {
        "model": trial.label,
        "right": trial.passed,
        "problem": trial.problem,
        "mistakes": list(checked.mistakes) if checked else [],
        "worst": _plain(checked.worst) if checked else None,
        "trials": [
            {
                "factors": {axis: float(factor) for axis, factor in one.factors.items()},
                "tie": one.tie,
                "error": _plain(one.error),
                "problem": one.problem,
                "refusal": one.refusal,
            }
            for one in (checked.trials if checked else ())
        ],
    }


def _plain(value: float | None) -> Figure | None:
    return None if value is None else figure(value)
