"""Optimizers that run during a verification, built from the table of optimizer rules."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mupscale_cli.optimizers.identity import Kind
from mupscale_cli.optimizers.rules.rule import DECOUPLED, OptimizerRule
from mupscale_cli.optimizers.rules.table import optimizer_rule
from mupscale_cli.verification.result import CannotVerify

# Arguments that choose torch's implementation and do not change its results.
_IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
# Names of parameters that the Trainer of transformers does not decay (`Trainer.get_decay_parameter_names`).
_UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def decayed_parameters(model: nn.Module) -> dict[str, bool]:
    """Tell for every parameter that a model trains whether weight decay applies to it: not to norms, and not to biases.

    This is what the Trainer of transformers does.
    """
    norms = [f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    return {
        name: not (name.startswith(tuple(norms)) or _UNDECAYED.search(name.lower()))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def optimizer_class(rule: OptimizerRule) -> Any:
    """Import the optimizer class of a rule: its exact implementation if it names one, else torch's."""
    module, _, name = (rule.exact or rule.class_names["torch"]).rpartition(".")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class OptimizersOfModel:
    """The optimizers of one model, which step together."""

    optimizers: tuple[torch.optim.Optimizer, ...]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def load(self, parameter: nn.Parameter, entries: Mapping[str, Any]) -> None:
        """Set the state of a parameter."""
        for optimizer in self.optimizers:
            if any(parameter is each for group in optimizer.param_groups for each in group["params"]):
                optimizer.state[parameter] = dict(entries)

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


def make_optimizers(groups: Sequence[Mapping[str, Any]], kinds: Sequence[Kind]) -> OptimizersOfModel:
    """Make an optimizer for the groups of each kind.

    Args:
        groups: parameter groups with their settings; a group without parameters is left out.
        kinds: the optimizer of each group.

    Raises:
        CannotVerify: torch's class does not support the weight decay of a group.
    """
    by_kind: dict[tuple[str, bool], list[Mapping[str, Any]]] = {}
    for group, kind in zip(groups, kinds, strict=True):
        if group["params"]:
            by_kind.setdefault((kind.rule.name, kind.decoupled), []).append(group)
    made = (_make(optimizer_rule(name), decoupled, of) for (name, decoupled), of in by_kind.items())
    return OptimizersOfModel(tuple(made))


def _make(rule: OptimizerRule, decoupled: bool, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """Make an optimizer; drop the settings of its groups that its class does not take."""
    torch_class = optimizer_class(rule)
    accepted = set(inspect.signature(torch_class).parameters) - _IMPLEMENTATION
    flag = next((name for name in DECOUPLED if name in accepted), None)
    if decoupled != rule.decoupled:
        if flag is None:
            raise CannotVerify(f"the class of {rule.name} has no other weight decay than its usual one")
        groups = [{**group, flag: decoupled} for group in groups]
    optimizer: torch.optim.Optimizer = torch_class([_select(group, accepted) for group in groups])
    return optimizer


def _select(group: Mapping[str, Any], accepted: set[str]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key == "params" or key in accepted}
