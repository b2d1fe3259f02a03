"""When a model grows during a run, and how far."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

from torch import nn

from mupscale_cli.checkpoints.header import StoredTensor
from mupscale_cli.errors import PlanError
from mupscale_cli.plan import Plan
from mupscale_cli.tasks.growing.grow import GrowCall
from mupscale_cli.tasks.growing.live import read_live
from mupscale_cli.tasks.planning import plan_source
from mupscale_cli.tasks.source import Source, described
from mupscale_cli.text import suggest


@dataclass(frozen=True)
class GrowthSchedule:
    """When a model grows during a run, and how far.

    Attributes:
        growths: what happens when. A key is a step, or below 1 a fraction of the run; a value is a factor, or a mapping
            of options of `grow`. Each growth starts from the model that the growth before it has left, so that the
            factors 1.5 and 2 make a model three times as wide.
        options: options of `grow` for every growth. Each growth has a random seed of its own, the `seed` among them
            (default: 0) plus the number of the growth, counted from 0.

    Raises:
        PlanError: a time or an option is invalid.

    Example:
        >>> GrowthSchedule({0.3: 1.5, 0.6: 2}, {"noise": 0.1}).over(1000)
        {300: {'noise': 0.1, 'seed': 0, 'factor': 1.5}, 600: {'noise': 0.1, 'seed': 1, 'factor': 2}}
    """

    growths: Mapping[float, float | Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {each.name for each in fields(GrowCall)}
        for time, options in zip(self.growths, self._ordered, strict=True):
            if not isinstance(time, Real) or time < 0 or (time >= 1 and time != int(time)):
                raise PlanError(f"the time of a growth is {time}, expected a whole step, or a fraction below 1")
            if strange := sorted(options.keys() - known):
                raise PlanError(f"unknown option `{strange[0]}` of a growth", hint=suggest(strange[0], known))
            GrowCall(**options)  # raises if an option is invalid

    @property
    def _ordered(self) -> list[dict[str, Any]]:
        """The options of each growth, in the order of `growths`."""
        given = [each if isinstance(each, Mapping) else {"factor": each} for each in self.growths.values()]
        seed = self.options.get("seed", 0)
        return [{**self.options, "seed": seed + number, **own} for number, own in enumerate(given)]

    def over(self, steps: int) -> dict[int, dict[str, Any]]:
        """Return the options of each growth by the step before which it happens.

        Args:
            steps: number of steps of the run.

        Raises:
            PlanError: two growths happen before the same step, or not in the order in which they are listed.
        """
        times = [int(time) if time >= 1 else round(time * steps) for time in self.growths]
        if any(second <= first for first, second in itertools.pairwise(times)):
            raise PlanError(
                f"growths before the steps {', '.join(map(str, times))} do not follow one another",
                hint="list them in their order, at different steps",
            )
        return dict(zip(times, self._ordered, strict=True))

    def plans(self, model: nn.Module, config: Mapping[str, Any] | None = None, *, first: int = 0) -> tuple[Plan, ...]:
        """Plan every growth of a run at its start, so that an impossible one does not end it halfway.

        Args:
            model: the model that the run starts with.
            config: its config as plain values. Default: that of its attribute `config`.
            first: number of the first growth that is still to come.

        Raises:
            MupscaleError: a growth is impossible.
        """
        checkpoint, plans = read_live(model, config).as_checkpoint(), []
        for options in self._ordered[first:]:
            growth = GrowCall(**options)
            source = described(Source(checkpoint), growth.recipe, growth.settings)
            plans.append(plan_source(source, growth.as_widening))
            tensors = {tensor.target.name: StoredTensor(tensor.target, Path(), 0) for tensor in plans[-1].tensors}
            checkpoint = replace(source.checkpoint, tensors=tensors, config=plans[-1].config)
        return tuple(plans)
