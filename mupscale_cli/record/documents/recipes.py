"""Documents of `--json`: recipes: listed, shown, checked and drafted."""

from __future__ import annotations

from typing import Annotated, Literal, TypedDict

from mupscale_cli.record.types import Count, Figure


class Trial(TypedDict):
    """A trial widening of a recipe."""

    factors: Annotated[dict[str, float], "Factor of each widened axis."]
    tie: Annotated[str | None, "Treatment of a tied readout; null for the recipe's default."]
    error: Annotated[Figure | None, "Largest relative difference; null if the models were not compared."]
    problem: Annotated[str | None, "What went wrong; null if nothing did."]
    refusal: Annotated[str | None, "Why these sizes are impossible, which is no mistake; null if they are possible."]


class TriedModel(TypedDict):
    """A model that a recipe was checked on."""

    model: Annotated[str, "Name or path of the model."]
    right: Annotated[bool, "Whether the check found no mistakes."]
    problem: Annotated[str | None, "Why the check was impossible; null if it was possible."]
    mistakes: Annotated[list[str], "Mistakes visible without running the model."]
    worst: Annotated[Figure | None, "Largest relative difference of all trials."]
    trials: Annotated[list[Trial], "Trial widenings."]


class RecipeCheck(TypedDict):
    """Output of `mupscale recipes check`."""

    recipe: Annotated[str, "Name of the recipe."]
    file: Annotated[str, "File of the recipe."]
    right: Annotated[bool, "Whether the check found no mistakes."]
    axes: Annotated[Count, "Number of axes."]
    rules: Annotated[Count, "Number of rules."]
    tensors: Annotated[Count | None, "Number of tensors of the checkpoint; null without a checkpoint."]
    models: Annotated[list[TriedModel], "Models that the recipe was checked on."]


class RecipeDraft(TypedDict):
    """Output of `mupscale recipes infer`."""

    target: Annotated[str, "Model type, config or function."]
    output: Annotated[str | None, "Path of the written file; null if there is none."]
    recipe: Annotated[str, "Text of the recipe, as YAML."]
    fixed: Annotated[dict[str, str], "Axes that cannot be widened, with reasons."]
    worst: Annotated[float, "Largest relative difference of all proofs."]


class RecipeAxis(TypedDict):
    """An axis of a recipe."""

    name: Annotated[str, "Name of the axis."]
    about: Annotated[str, "Description."]
    size: Annotated[str, "Size as an expression over config.json."]
    by_factor: Annotated[bool, "Whether a bare --factor widens it."]
    fixed: Annotated[str | None, "Why it cannot be widened; null if it can."]
    grows: Annotated[list[str], "Parts of the model that grow with the axis."]
    doubled: Annotated[
        str | None, "Effect of doubling the axis on the number of parameters; null without a checkpoint."
    ]


class Choice(TypedDict):
    """A layout of a rule and its condition."""

    layout: Annotated[str, "Layout of the dimensions."]
    when: Annotated[str | None, "Condition on the config; null if it always applies."]


class RecipeRule(TypedDict):
    """A rule of a recipe."""

    pattern: Annotated[str, "Pattern of the tensor names."]
    choices: Annotated[list[Choice], "Layouts; the first one whose condition holds applies."]


class Recipe(TypedDict):
    """A recipe: `mupscale recipes show`."""

    name: Annotated[str, "Name of the recipe."]
    about: Annotated[str, "Description."]
    match: Annotated[dict[str, Annotated[list[str], "Values, or wildcards."]], "Config keys that choose the recipe."]
    file: Annotated[str, "File of the recipe."]
    sha256: Annotated[str, "SHA-256 of its content."]
    axes: Annotated[list[RecipeAxis], "Sets of interchangeable units."]
    groups: Annotated[dict[str, Annotated[list[str], "Names of the axes."]], "Names for several axes."]
    linked: Annotated[dict[str, str], "Axes that the config links to others."]
    tie: Annotated[list[str] | None, "Treatments of a tied readout: fold, config, untie; the default comes first."]
    tensors: Annotated[list[RecipeRule], "The rules."]
    definitions: Annotated[dict[str, str], "Named expressions."]


class ListedRecipe(TypedDict):
    """An entry in the list of recipes."""

    name: Annotated[str, "Name of the recipe."]
    match: Annotated[dict[str, Annotated[list[str], "Values, or wildcards."]], "Config keys that choose the recipe."]
    about: Annotated[str, "Description."]
    axes: Annotated[list[str], "Names of the axes."]


class Recipes(TypedDict):
    """The built-in recipes: `mupscale recipes list`."""

    recipes: Annotated[list[ListedRecipe], "All built-in recipes."]


class CoveredType(TypedDict):
    """A model type of transformers."""

    name: Annotated[str, "Value of `model_type` in config.json."]
    tasks: Annotated[list[str], "Tasks that transformers has a class for."]
    outcome: Annotated[
        Literal["recipe", "refused", "drafted", "failed", "none"],
        "What mupscale has for it; `drafted` or `failed` if drafting was tried.",
    ]
    detail: Annotated[str, "Recipes, axes of the draft, or the reason; empty if there is none."]


class Coverage(TypedDict):
    """The model types of transformers and the recipes: `mupscale recipes coverage`."""

    types: Annotated[list[CoveredType], "The model types, by name."]
