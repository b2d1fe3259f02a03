"""Optimizers that store averages over rows and columns instead of a second moment for each element. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.rules.powers import PER_SQUARE, Powers
from mupscale_cli.optimizers.rules.rule import QUADRATIC, SAME, STEP, Entry, OptimizerRule


def _all_but_last(count: int) -> tuple[int, ...]:
    return tuple(range(count - 1))


def _all_but_second_last(count: int) -> tuple[int, ...]:
    return (*range(count - 2), count - 1)


def _adafactor(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """With `scale_parameter`, a step is as long as the weights times the learning rate, so it follows c by itself."""
    is_relative = bool(settings.get("relative_step", True))
    if settings.get("scale_parameter", True):
        return {"lr": Powers(), "has_rate": not is_relative}
    if is_relative:
        raise PlanError(
            "Adafactor with `relative_step` and without `scale_parameter` has no learning rate that could become c "
            "times as large",
            hint="omit the state with `--optimizer none`, and continue with a learning rate for each tensor",
        )
    return {}


def _torch_adafactor(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without a first eps, torch takes the precision of the data type, which cannot become 1/(m c)^2 as large."""
    if settings.get("eps", (0.0,))[0] is None:
        raise PlanError(
            "torch's Adafactor has no number as its first eps, so it takes the precision of the parameters' data type, "
            "and the wide model needs another number",
            hint="set what it takes in the narrow run, which changes nothing, and save the state again: "
            "`for group in optimizer.param_groups: "
            "group['eps'] = (torch.finfo(group['params'][0].dtype).eps, group['eps'][1])`",
        )
    return {}


RULES = (
    OptimizerRule(
        title="Adafactor",
        # Rows and columns average squares; the first moment, which `beta1` adds, averages steps.
        state={
            "exp_avg_sq_row": Entry(PER_SQUARE, dims=_all_but_last),
            "exp_avg_sq_col": Entry(PER_SQUARE, dims=_all_but_second_last),
            "exp_avg_sq": QUADRATIC,
            "exp_avg": STEP,
            "RMS": SAME,  # computed again in each step
        },
        lr=Powers(c=1),
        decoupled=True,
        decay=Powers(c=-1),
        scaled={"eps": (PER_SQUARE, Powers(c=1))},  # added to squared gradients; the least size of the weights
        variant=_adafactor,
        settings={
            "lr": 1e-3,
            "eps": (1e-30, 1e-3),
            "clip_threshold": 1.0,
            "decay_rate": -0.8,
            "beta1": None,
            "weight_decay": 0.1,
            "scale_parameter": False,
            "relative_step": False,
            "warmup_init": False,
        },
        implied={"exp_avg_sq_row": {}, "exp_avg_sq_col": {}, "exp_avg_sq": {}, "exp_avg": {"beta1": 0.9}},
        marks=(frozenset({"eps", "clip_threshold", "decay_rate", "scale_parameter"}),),  # transformers and fairseq
        class_names={"torch": "transformers.optimization.Adafactor"},
        caveats=("Adafactor is exact only for whole copies: fresh units change the averages that limit its steps",),
    ),
    OptimizerRule(
        title="TorchAdafactor",
        # A step is as long as the weights times the learning rate, so it follows c by itself; decay has the rate alone.
        state={"row_var": QUADRATIC, "col_var": QUADRATIC, "variance": QUADRATIC},
        lr=Powers(),
        decoupled=True,
        scaled={"eps": (PER_SQUARE, Powers(c=1))},  # the least mean of squared gradients; the least size of the weights
        variant=_torch_adafactor,
        settings={"lr": 1e-2, "beta2_decay": -0.8, "eps": (2.0**-23, 1e-3), "d": 1.0, "weight_decay": 0.0},
        implied={"row_var": {}, "col_var": {}, "variance": {}},
        marks=(frozenset({"beta2_decay", "d"}),),
        class_names={"torch": "torch.optim.Adafactor"},
        caveats=(
            "Adafactor is exact only for whole copies: fresh units change the averages that limit its steps",
            "torch's Adafactor is exact only where no mean of squared gradients is below its first eps, squared",
        ),
    ),
)
