"""Growing to the sizes of another model: what grows, what stays the source's, and what stands in the way."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mupscale_cli.architecture.expressions import look_up
from mupscale_cli.architecture.loading import recipe_for
from mupscale_cli.architecture.types import Recipe
from mupscale_cli.checkpoints.libraries import library_of
from mupscale_cli.errors import PlanError
from mupscale_cli.plan.axes import sizes_from_config
from mupscale_cli.plan.conditions import environment, evaluate_located
from mupscale_cli.plan.config import widen_config
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.depth import stack_axes, stack_sizes
from mupscale_cli.plan.types import GoalComparison, KeyDifference, Plan
from mupscale_cli.text import counted, shown

_NOT_THE_MODEL = frozenset(  # keys that say how a model is stored or used
    ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache")
)
_TEXT = "text_config"


@dataclass(frozen=True)
class Goal:
    """A model whose sizes to take.

    Attributes:
        name: path or Hub id, as the user wrote it.
        config: its config.json.
    """

    name: str
    config: Mapping[str, Any]

    def for_recipe(self, recipe: Recipe, config: Mapping[str, Any]) -> Goal:
        """Return the target, or its language model, as a model of a recipe.

        Args:
            recipe: recipe of the source.
            config: config.json of the source.

        Raises:
            PlanError: the target has another architecture.
        """
        key = library_of(config).key
        for candidate in (self.config, self.config.get(_TEXT)):
            if isinstance(candidate, Mapping) and (
                candidate.get(key) == config.get(key) or recipe_for(candidate) == recipe.name
            ):
                return Goal(self.name, candidate)
        raise PlanError(
            f"`{self.name}` has another architecture: its `{key}` is {shown(self.config.get(key))}, that "
            f"of the source {shown(config.get(key))}",
            hint="a target needs the architecture of the source; only its sizes are taken",
        )

    def sizes(self, narrow: Plan, config: Mapping[str, Any], without: Container[str] = ()) -> dict[str, int]:
        """Return the size of every axis and of every stack of blocks in the target.

        Args:
            narrow: the plan that copies the source unchanged.
            config: config.json of the source.
            without: axes whose size is chosen in another way.

        Raises:
            PlanError: an axis would shrink or must keep its size, or the target's sizes contradict each other.
        """
        recipe = narrow.recipe
        names = narrow.plain_names
        values = environment(recipe, self.config, names, narrow.tie)
        sizes = sizes_from_config(recipe, values, narrow.used)
        axes = {axis.name: Axis(axis.name, sizes[axis.name] or axis.size) for axis in narrow.axes}
        stacks = [Axis(name, size) for name, size in stack_sizes(recipe, names, config).items()]
        sizes |= (found := stack_sizes(recipe, names, self.config))
        axes |= stack_axes(recipe, found, {})
        _, wrong = widen_config(recipe, self.config, values, axes)
        reasons = [
            f"`{change.key}` is {shown(change.before)} in the target, but its parts multiply to {shown(change.after)}"
            for change in wrong
            if change.before is not None
        ]
        used = [axis for axis in narrow.axes if axis.name in narrow.used]
        chosen = [axis for axis in (*used, *stacks) if axis.name not in without]
        stuck = {axis.name: why for axis in chosen if (why := self._obstacle(recipe, axis, axes[axis.name], config))}
        if reasons or stuck:
            options = " ".join(f"--axis {name}=1" for name in stuck)
            raise PlanError(
                f"the source cannot grow to `{self.name}`: {counted(len(reasons) + len(stuck), 'obstacle')}",
                excerpt="\n".join(f"  {reason}" for reason in (*reasons, *stuck.values())),
                hint=f"`{options}` would leave {'this size' if len(stuck) == 1 else 'these sizes'} as in the source"
                if stuck
                else "choose another target, or sizes with `--axis NAME:SIZE`",
            )
        return {axis.name: size for axis in chosen if (size := sizes[axis.name]) is not None}

    def _obstacle(self, recipe: Recipe, axis: Axis, wanted: Axis, config: Mapping[str, Any]) -> str | None:
        """Return why an axis cannot have the target's size; None if it can."""
        if axis.size is None or wanted.size is None or wanted.size == axis.size:
            return None
        written = [rule.key for rule in recipe.config if axis.name in rule.names]
        counted_by = [rule.key for rule in recipe.depths if axis.name == rule.name]
        values = ((key, look_up(key, config), look_up(key, self.config)) for key in (*written, *counted_by))
        keys = ", ".join(f"`{key}` {a} -> {b}" for key, a, b in values if None not in (a, b) and a != b)
        abouts = {rule.name: rule.about for rule in recipe.axes} | {rule.name: rule.about for rule in recipe.depths}
        where = f"{keys + ': ' if keys else ''}the axis `{axis.name}` ({abouts[axis.name].partition(';')[0]})"
        if wanted.size < axis.size:
            return f"{where} cannot shrink from {axis.size} to {wanted.size}"
        if axis.name in recipe.fixed:
            return f"{where} cannot grow from {axis.size} to {wanted.size}: {recipe.fixed[axis.name]}"
        return None

    def unties(self, narrow: Plan) -> bool:
        """Return whether the readout has weights of its own in the target, but not in the source."""
        tie = narrow.recipe.tie
        if tie is None or narrow.tie is None or "untie" not in tie.ways:
            return False
        values = environment(narrow.recipe, self.config, narrow.plain_names)
        return not evaluate_located(tie.when, values, tie.text.error)

    def compare(self, config: Mapping[str, Any], wide: Mapping[str, Any]) -> GoalComparison:
        """Return the config keys of the target that the source or the output does not share.

        Args:
            config: config.json of the source.
            wide: config.json of the output.
        """
        narrow, target, after = (dict(_flat(each)) for each in (config, self.config, wide))
        keys = (key for key in {**narrow, **target} if key not in _NOT_THE_MODEL)
        rows = (KeyDifference(key, narrow.get(key), target.get(key), after.get(key)) for key in keys)
        different = (row for row in rows if row.before != row.target or row.after not in (row.before, row.target))
        return GoalComparison(self.name, tuple(different))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested configs, dotted, with their values."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
