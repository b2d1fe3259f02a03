"""What the expressions of a recipe see, and which alternative holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from mupscale_cli.architecture.expressions import Expression, evaluate, look_up
from mupscale_cli.architecture.matching import Match
from mupscale_cli.architecture.syntax import LanguageError
from mupscale_cli.architecture.types import Choice, Recipe

T = TypeVar("T")
Values = dict[str, Any]


def environment(recipe: Recipe, config: Mapping[str, Any], names: Iterable[str] = (), tie: str | None = None) -> Values:
    """What expressions see: config keys, the recipe's defaults where they are absent or null, its definitions.

    `tensors` is the list of the checkpoint's tensors, `tie` what is done about a shared readout.
    """
    values: Values = {key: value for key, value in config.items() if value is not None}
    for key, default in recipe.defaults.items():
        if look_up(key, values) is None:
            values[key] = default
    values |= {"tensors": list(names), "tie": tie}
    for name, expression, text in recipe.definitions:
        values[name] = evaluated(expression, values, text.error)
    return values


def evaluated(expression: Expression, values: Values, error: Any) -> Any:
    """The value of an expression.

    Args:
        expression: of the recipe.
        values: what it sees.
        error: makes the error for the text that it stands in.

    Raises:
        RecipeError: it has none.
    """
    try:
        return evaluate(expression, values)
    except LanguageError as problem:
        raise error(problem.message, problem.span, problem.hint) from problem


def choose(choices: Sequence[Choice[T]], values: Values, match: Match | None = None) -> Choice[T]:
    """The first alternative that holds.

    Args:
        choices: in the order of the recipe.
        values: what conditions see.
        match: the tensor that it is for, if it is for one.

    Raises:
        RecipeError: none holds.
    """
    for choice in choices:
        if choice.when is None or choice.condition is None or evaluated(choice.when, values, choice.condition.error):
            return choice
    what = f"for `{match.groups.string}` " if match else ""
    raise choices[-1].text.error(f"no alternative holds {what}with this config", hint="add one without `when`")
