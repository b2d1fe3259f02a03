"""A model with its optimizer, and the steps that they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mupscale_cli.errors import VerifyError
from mupscale_cli.optimizers.identity import Kinds, identify_all
from mupscale_cli.verification.activations import name_in
from mupscale_cli.verification.optimizers import OptimizersOfModel, make_optimizers
from mupscale_cli.verification.planned import Group, States

Loss = Callable[[nn.Module, int], Tensor]


@dataclass(frozen=True)
class Trainee:
    """A model with its optimizer."""

    model: nn.Module
    optimizer: OptimizersOfModel


@dataclass(frozen=True)
class Start:
    """What the optimizer of a model starts from.

    Attributes:
        groups: its parameter groups.
        states: its state.
        named: optimizers that the user says these are; empty to let settings and keys tell.
    """

    groups: Sequence[Group]
    states: States
    named: Sequence[str] = ()

    @cached_property
    def kinds(self) -> Kinds:
        return identify_all(self.groups, self.states, self.named)

    @property
    def description(self) -> str:
        settings = self.groups[0][0]
        shown = ", ".join(f"{key} {settings[key]:g}" for key in ("lr", "weight_decay", "momentum") if settings.get(key))
        return f"{' and '.join(self.kinds.names)} ({shown})"


def make_trainee(model: nn.Module, start: Start) -> Trainee:
    """Make an optimizer for a model, with the given parameter groups and state."""
    parameters = dict(model.named_parameters())
    by_name = {
        name: parameters[in_model]
        for name in (n for _, names in start.groups for n in names)
        if (in_model := name_in(model, name, parameters)) is not None
    }
    missing = next((name for _, names in start.groups for name in names if name not in by_name), None)
    if missing:
        raise VerifyError(f"the optimizer has a parameter `{missing}` that the model lacks")
    torch_groups = [{**settings, "params": [by_name[name] for name in names]} for settings, names in start.groups]
    optimizer = make_optimizers(torch_groups, start.kinds.groups)
    for name, entries in start.states.items():
        in_model = name_in(model, name, parameters)
        if in_model is None:
            raise VerifyError(f"the optimizer has state for `{name}`, which the model lacks")
        optimizer.load(parameters[in_model], {key: _as_float64(key, value) for key, value in entries.items()})
    return Trainee(model, optimizer)


def _as_float64(key: str, value: Any) -> Any:
    if key == "step" and not isinstance(value, Tensor):
        return torch.tensor(float(value), dtype=torch.float64)  # torch counts in tensors
    if isinstance(value, Tensor):
        return value.clone().double() if value.is_floating_point() else value.clone()
    return value


def _begin_step(model: nn.Module) -> None:
    """Put a model into the mode of a training step: BatchNorm uses the batch. Dropout stays off, since it is random.

    `train()` is called before every step, as a training loop does. A class drops there what it keeps only for
    evaluation, such as the biases of LeViT's attention, and may leave a BatchNorm frozen. Flags alone then turn dropout
    off: on a call of `eval()`, a class might merge weights or keep some.

    What the model's class freezes, such as a table of sines, stays frozen.
    """
    model.train()
    for module in model.modules():
        if not isinstance(module, _BatchNorm):
            module.training = False


def take_step(trainee: Trainee, loss: Loss, step: int) -> float:
    """Take an optimizer step; return the loss before it."""
    try:
        _begin_step(trainee.model)
        value = loss(trainee.model, step)
        trainee.optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        trainee.optimizer.step()
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise VerifyError(f"the model failed to train: {error}") from error
    return float(value.detach())
