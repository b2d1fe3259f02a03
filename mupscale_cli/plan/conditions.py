"""Evaluating the expressions of a recipe, and choosing among its alternatives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from mupscale_cli.architecture.expressions import Expression, evaluate, look_up
from mupscale_cli.architecture.matching import Match
from mupscale_cli.architecture.syntax import LanguageError
from mupscale_cli.architecture.types import Choice, Recipe
from mupscale_cli.dtypes import TensorSpec

T = TypeVar("T")
Values = dict[str, Any]


def environment(recipe: Recipe, config: Mapping[str, Any], names: Iterable[str] = (), tie: str | None = None) -> Values:
    """Return the names that expressions can use, with their values.

    These are the config's keys, the recipe's defaults for keys that are absent or null, the recipe's definitions,
    `tensors` (the names of the checkpoint's tensors) and `tie` (how a shared readout is scaled). As in transformers,
    `num_labels` is the number of entries of `id2label`.

    Args:
        recipe: recipe of the architecture.
        config: config.json, or an empty mapping.
        names: names of the checkpoint's tensors.
        tie: a key of `TIES`, or None.

    Raises:
        RecipeError: a definition cannot be evaluated.
    """
    values: Values = {key: value for key, value in config.items() if value is not None}
    if isinstance(labels := values.get("id2label"), Mapping):
        values["num_labels"] = len(labels)
    for key, default in recipe.defaults.items():
        if look_up(key, values) is None:
            values[key] = default
    values |= {"tensors": list(names), "tie": tie}
    for name, expression, text in recipe.definitions:
        values[name] = evaluate_located(expression, values, text.error)
    return values


def with_measured_defaults(recipe: Recipe, specs: Sequence[TensorSpec]) -> Recipe:
    """Return a recipe whose defaults include those that it reads off the shapes of the tensors.

    A default whose tensor the checkpoint does not have stays absent.
    """
    values: dict[str, object] = {}
    for key, default in recipe.measured.items():
        regexes = [default.pattern.regex(prefixes) for prefixes in recipe.prefixes]
        found = [
            (tuple(int(text) for text in match.groups() if text.isdecimal()), spec.shape[default.dim])
            for spec in specs
            for regex in regexes
            if (match := regex.fullmatch(spec.name)) and default.dim < len(spec.shape)
        ]
        sizes = [size for _, size in sorted(found)]
        if sizes:
            values[key] = sizes if default.pattern.num_wildcards else sizes[0]
    return replace(recipe, defaults={**recipe.defaults, **values}) if values else recipe


def evaluate_located(expression: Expression, values: Values, error: Any) -> Any:
    """Evaluate an expression of a recipe; an error shows its place in the file.

    Args:
        expression: an expression of the recipe.
        values: names and values, as `environment` returns them.
        error: makes an error that points to the text of the expression.

    Raises:
        RecipeError: the expression cannot be evaluated.
    """
    try:
        return evaluate(expression, values)
    except LanguageError as problem:
        raise error(problem.message, problem.span, problem.hint) from problem


def choose(choices: Sequence[Choice[T]], values: Values, match: Match | None = None) -> Choice[T]:
    """Return the first alternative whose condition is true.

    Args:
        choices: alternatives in the order of the recipe.
        values: names and values, as `environment` returns them.
        match: the tensor to choose for, named in the error; conditions know the tensors of its block as `block`.

    Raises:
        RecipeError: no condition is true.
    """
    if match is not None and match.block:
        values = {**values, "block": list(match.block)}
    for choice in choices:
        if choice.when is None or choice.condition is None:
            return choice
        if evaluate_located(choice.when, values, choice.condition.error):
            return choice
    where = f" to `{match.groups.string}`" if match else ""
    raise choices[-1].text.error(
        f"no alternative applies{where} with this config", hint="add an alternative without `when`"
    )
