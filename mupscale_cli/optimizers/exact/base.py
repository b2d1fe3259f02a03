"""What exact optimizers share: a loop over parameters, and a constructor that takes their settings."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor


class ExactOptimizer(torch.optim.Optimizer):
    """An optimizer that is defined by its usual settings and by what one step does to one parameter.

    Attributes:
        usual: the default of every setting, which the constructor takes by name.
    """

    usual: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        kind = inspect.Parameter.KEYWORD_ONLY
        settings = (inspect.Parameter(name, kind, default=value) for name, value in cls.usual.items())
        parameters = inspect.Parameter("params", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        cls.__signature__ = inspect.Signature([parameters, *settings])  # type: ignore[attr-defined]

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, {**self.usual, **settings})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 (torch's signature)
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, self.state[parameter], group)
            self.finish(group)

    @abstractmethod
    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> None:
        """Take a step with one parameter, in place.

        Args:
            parameter: the parameter.
            gradient: its gradient, of the same shape.
            state: its state; empty before the first step.
            group: the settings of its group.
        """

    def finish(self, group: dict[str, Any]) -> None:
        """Change settings of a group that count steps."""


def buffer(state: dict[str, Any], key: str, like: Tensor) -> Tensor:
    """Return an entry of the state, which is zero before the first step."""
    entry: Tensor = state.setdefault(key, torch.zeros_like(like))
    return entry


def counted_step(state: dict[str, Any]) -> float:
    """Count a step of a parameter; return its number, from 1."""
    state["step"] = state.get("step", 0) + 1
    return float(state["step"])
