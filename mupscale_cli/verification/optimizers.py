"""Optimizers that run during a verification, built from the table of optimizer rules."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mupscale_cli.optimizers.rules import OptimizerRule
from mupscale_cli.verification.result import CannotVerify

# Arguments that choose torch's implementation and do not change its results.
_IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
# Names of parameters that the Trainer of transformers does not decay (`Trainer.get_decay_parameter_names`).
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def decayed_parameters(model: nn.Module) -> dict[str, bool]:
    """Tell for every parameter of a model whether weight decay applies to it: not to norms, and not to biases.

    This is what the Trainer of transformers does.
    """
    norms = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    return {
        name: not (name.startswith(tuple(norms)) or _UNDECAYED.search(name.lower()))
        for name, _ in model.named_parameters()
    }


def optimizer_class(rule: OptimizerRule) -> Any:
    """Import the optimizer class of a rule: its exact implementation if it names one, else torch's."""
    module, _, name = (rule.exact or rule.class_names["torch"]).rpartition(".")
    return getattr(importlib.import_module(module), name)


def make_optimizer(rule: OptimizerRule, decoupled: bool, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Make an optimizer; drop the settings of its groups that its class does not take.

    Args:
        rule: the optimizer.
        decoupled: whether its weight decay is decoupled from the gradient.
        groups: parameter groups with their settings.

    Raises:
        CannotVerify: torch's class does not support this weight decay.
    """
    rule = rule.with_decay(decoupled)
    torch_class = optimizer_class(rule)
    accepted = set(inspect.signature(torch_class).parameters) - _IMPLEMENTATION
    if decoupled and not rule.decoupled:
        if "decoupled_weight_decay" not in accepted:
            raise CannotVerify(f"torch's {rule.name} has no decoupled weight decay")
        groups = [{**group, "decoupled_weight_decay": True} for group in groups]
    optimizer: torch.optim.Optimizer = torch_class([_select(group, accepted) for group in groups])
    return optimizer


def _select(group: Mapping[str, Any], accepted: set[str]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key == "params" or key in accepted}
