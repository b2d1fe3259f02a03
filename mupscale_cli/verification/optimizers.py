"""Optimizers for trying out training, as the table of optimizers names them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch

from mupscale_cli.optimizers.rules import OptimizerRule
from mupscale_cli.verification.result import CannotVerify

# How torch computes, which changes no result that counts here.
_IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}


def optimizer_class(rule: OptimizerRule) -> Any:
    """Import the class that the table names."""
    module, _, name = (rule.exact or rule.called["torch"]).rpartition(".")
    return getattr(importlib.import_module(module), name)


def make_optimizer(rule: OptimizerRule, decoupled: bool, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make an optimizer for groups that may have settings which it does not know.

    Args:
        rule: the optimizer.
        decoupled: how its weight decay works.
        groups: with their parameters.

    Raises:
        CannotVerify: the kind cannot be tried out with its weight decay.
    """
    rule = rule.with_decay(decoupled)
    made_by = optimizer_class(rule)
    known = set(inspect.signature(made_by).parameters) - _IMPLEMENTATION
    if decoupled and not rule.decoupled:
        if "decoupled_weight_decay" not in known:
            raise CannotVerify(f"torch's {rule.name} has no decoupled weight decay")
        groups = [{**group, "decoupled_weight_decay": True} for group in groups]
    made: torch.optim.Optimizer = made_by([_only(known, group) for group in groups])
    return made


def _only(known: set[str], group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key == "params" or key in known}
