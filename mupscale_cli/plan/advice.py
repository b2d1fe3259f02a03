"""A hint that works: the growth nearest to a refused one that can be planned, as options that can be typed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from mupscale_cli.errors import MupscaleError, PlanError
from mupscale_cli.plan.request import Amount, Request, Size, ratio_text
from mupscale_cli.plan.types import Plan

_ATTEMPTS = 16  # growths to plan before giving up
_OTHERS = "; `--params N --dry-run`, in place of `--factor`, lists shapes that fit"


def plan_or_advise(request: Request, plan: Callable[[Request], Plan], sizes_of: str | None = None) -> Plan:
    """Plan a request; if its sizes are impossible, say which similar ones are possible.

    Args:
        request: what to grow.
        plan: plans a request.
        sizes_of: the model whose sizes the request has, if it has any.

    Raises:
        MupscaleError: the request is impossible. The hint of a `PlanError` that proposes other factors is a growth that
            has been planned, if one was found.
    """
    try:
        return plan(request)
    except PlanError as error:
        possible = _possible(request, plan, error) or _whole(request, plan)
        if possible is not None:
            sizing = [] if sizes_of is None else [f"--to {sizes_of}"]
            error.hint = f"use `{' '.join([*sizing, *_options(possible)])}`" + _OTHERS * (request.factor is not None)
        raise


def _possible(request: Request, plan: Callable[[Request], Plan], error: PlanError) -> Request | None:
    """Return the request with other factors that can be planned; None if what errors propose leads to none."""
    changes: dict[str, Amount] = {}
    for _ in range(_ATTEMPTS):
        if not error.instead.items() - changes.items():
            return None
        changes |= error.instead
        changed = replace(request, axes={**request.axes, **changes})
        try:
            planned = plan(changed)
        except PlanError as following:
            error = following
        except MupscaleError:
            return None
        else:
            if not planned.factors and not planned.blocks:
                return None
            shorter = _with_common_factor(request, planned)
            return changed if shorter is None or not _is_planned(shorter, plan) else shorter
    return None


def _whole(request: Request, plan: Callable[[Request], Plan]) -> Request | None:
    """Return the request with the next whole factor, which needs no fresh units; None if that is no way out either."""
    if request.factor is None or request.factor == math.ceil(request.factor):
        return None
    whole = replace(request, factor=Fraction(math.ceil(request.factor)))
    return whole if _is_planned(whole, plan) else None


def _with_common_factor(request: Request, planned: Plan) -> Request | None:
    """Return a planned growth as one factor and the axes that differ, if no axis has the requested factor."""
    if request.factor is None:
        return None
    ratios = {axis.name: axis.ratio for axis in planned.axes if axis.name in planned.used}
    widened = [ratios[name] for name in planned.recipe.widen if name in ratios and name not in request.axes]
    if request.factor in widened or not widened:
        return None
    factor = Counter(widened).most_common(1)[0][0]
    others = {name: r for name, r in ratios.items() if r != (factor if name in planned.recipe.widen else 1)}
    return replace(request, factor=factor, axes={**request.axes, **others})


def _is_planned(request: Request, plan: Callable[[Request], Plan]) -> bool:
    try:
        plan(request)
    except MupscaleError:
        return False
    return True


def _options(request: Request) -> list[str]:
    """Return the options that ask for a growth."""
    factor = [] if request.factor is None else [f"--factor {ratio_text(request.factor)}"]
    return [*factor, *(f"--axis {name}{_amount_text(amount)}" for name, amount in request.axes.items())]


def _amount_text(amount: Amount) -> str:
    return f":{amount.units}" if isinstance(amount, Size) else f"={ratio_text(Fraction(amount))}"
