"""Widen an optimizer and a learning rate scheduler in memory."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.checkpoints.containers.nested import map_tensors, walk
from mupscale_cli.checkpoints.containers.places import place_name
from mupscale_cli.dtypes import TensorSpec, dtype_of
from mupscale_cli.engine.finite import NonFinite
from mupscale_cli.engine.streaming import expand_whole
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.content import WideContent, widen_content
from mupscale_cli.optimizers.identity import named_after
from mupscale_cli.optimizers.quantized import dequantized
from mupscale_cli.optimizers.scheduler import NESTED, regroup_scheduler
from mupscale_cli.optimizers.state_plan import Policy
from mupscale_cli.plan import Plan, TensorPlan

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def expand_live(tensor: TensorPlan, source: Tensor, nonfinite: NonFinite, like: Tensor) -> Tensor:
    """Return a widened tensor with the data type and on the device of the source; computed on the CPU.

    Args:
        tensor: its plan.
        source: the narrow tensor. If it is sharded, every process gathers it, and keeps its shard of the result.
        nonfinite: counts or refuses NaNs and infinities.
        like: the tensor or the parameter whose place the result takes, and whose sharding it gets.

    Raises:
        CheckpointError: the source contains values that are not finite, or scaling makes some.
    """
    whole: Tensor = source.full_tensor() if is_sharded(source) else source  # type: ignore[attr-defined]
    wide = expand_whole(tensor, whole.detach().to("cpu").contiguous(), nonfinite).to(source.device)
    if not is_sharded(source) or wide.shape != like.shape:
        return wide
    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    sharded: Tensor = importlib.import_module("torch.distributed.tensor").distribute_tensor(
        wide, mesh, placements, src_data_rank=None
    )
    return sharded


def is_sharded(tensor: Tensor) -> bool:
    """Tell whether a tensor is a DTensor, such as a parameter in `fully_shard`."""
    return hasattr(tensor, "full_tensor")


@dataclass(frozen=True)
class LiveState:
    """An optimizer in memory, and the plan of its wide form.

    Attributes:
        optimizer: the narrow optimizer.
        wide: the planned state and parameter groups.
        stored: the tensors of the narrow state, by place.
    """

    optimizer: torch.optim.Optimizer
    wide: WideContent
    stored: Mapping[str, Tensor]

    def make(
        self, parameter_of: Callable[[str], nn.Parameter], nonfinite: NonFinite, make: MakeOptimizer | None
    ) -> torch.optim.Optimizer:
        """Make the wide optimizer.

        Args:
            parameter_of: returns a parameter of the wide model by its name.
            nonfinite: counts or refuses NaNs and infinities in the state.
            make: makes an optimizer from parameter groups. Default: the class of the narrow one.

        Raises:
            PlanError: the class cannot be called with parameter groups.
        """
        narrow_groups = self.optimizer.param_groups
        groups: list[dict[str, Any]] = []
        parameters: dict[Any, nn.Parameter] = {}
        for group, planned in zip(self.wide.content["param_groups"], self.wide.groups, strict=True):
            members = [parameter_of(name) for name in planned.names]
            parameters |= dict(zip(group["params"], members, strict=True))
            settings = {key: _like(narrow_groups[planned.source].get(key), value) for key, value in group.items()}
            groups.append({**settings, "params": members})
        optimizer = (make or self._make_same)(groups)
        plans = {tensor.target.name: tensor for tensor in self.wide.tensors}

        def expanded(place: tuple[Any, ...], _blank: Tensor) -> Tensor:
            plan, number = plans[place_name(place)], place[1]
            return expand_live(plan, self.stored[plan.source.name], nonfinite, parameters[number])

        for number, entries in map_tensors(self.wide.content["state"], ("state",), expanded).items():
            optimizer.state[parameters[number]] = entries
        return optimizer

    def _make_same(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        kind = type(self.optimizer)
        accepted = inspect.signature(kind).parameters
        defaults = {key: value for key, value in self.optimizer.defaults.items() if key in accepted}
        try:
            return kind(groups, **defaults)
        except Exception as error:  # the class may raise anything
            raise PlanError(
                f"cannot make a wide {kind.__name__} from parameter groups: {error}",
                hint="pass `make_optimizer=`, a function of the groups",
            ) from error


def plan_live_state(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], plan: Plan, policy: Policy
) -> LiveState:
    """Plan the wide form of an optimizer.

    Args:
        optimizer: the narrow optimizer.
        names: the name of each parameter of the narrow model, by its id().
        plan: the plan of the weights.
        policy: what to do with the moments.

    Raises:
        MupscaleError: the optimizer has parameters that the model lacks, or its state cannot be widened.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        if id(parameter) not in names:
            raise PlanError(
                f"the optimizer has a parameter of shape {tuple(parameter.shape)} that is not one of the model's",
                hint="pass the model that it trains",
            )
    if plan.tie == "untie":
        raise PlanError(
            "the optimizer has shared moments for embedding and readout, which train separately once they are untied",
            hint="grow the model alone, or omit `tie`",
        )
    state = optimizer.state_dict()
    groups = [{k: _number(v) for k, v in group.items() if k != "param_names"} for group in state["param_groups"]]
    content = {"state": dequantized(state["state"]), "param_groups": groups}
    numbers = [number for group in groups for number in group["params"]]
    named = {number: names[id(parameter)] for number, parameter in zip(numbers, parameters, strict=True)}
    stored = {place_name(place): tensor for place, tensor in walk(content)}
    specs = {id(tensor): _spec(name, tensor) for name, tensor in stored.items()}
    try:
        wide = widen_content(
            content, specs, (), plan, policy, plan.config, lambda _groups, _states: named, named_after(optimizer)
        )
    except PlanError as error:  # its hints name options for state files
        raise PlanError(
            f"{type(optimizer).__name__}: {error.message}",
            hint="grow the model without its optimizer, and make a new one for it",
        ) from error
    return LiveState(optimizer, wide, stored)


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    try:
        return TensorSpec(name, dtype_of(tensor.dtype).name, tuple(tensor.shape))
    except KeyError as error:
        raise PlanError(f"the optimizer's `{name}` has the unsupported data type {tensor.dtype}") from error


def _number(setting: Any) -> Any:
    """Return a setting; as a number if it is a tensor with one, like the `lr` of a compiled step."""
    return setting.item() if isinstance(setting, Tensor) and setting.numel() == 1 else setting


def _like(narrow: Any, setting: Any) -> Any:
    """Return a setting as a tensor if the narrow optimizer has one."""
    is_tensor = isinstance(narrow, Tensor) and not isinstance(setting, Tensor)
    return torch.full_like(narrow, setting) if is_tensor else setting


def widen_live_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer, groups: Sequence[tuple[int, float]]) -> Any:
    """Return a learning rate scheduler that continues another one with a wide optimizer.

    Args:
        scheduler: a scheduler of torch, or one made of several; its optimizer is the narrow one.
        optimizer: the wide optimizer.
        groups: for each wide group, the index of its narrow group and the factor of its learning rate.

    Raises:
        PlanError: its schedule cannot be scaled.
    """
    wide = _bound(scheduler, optimizer)
    regroup_scheduler(wide, groups)
    return wide


def _bound(scheduler: Any, optimizer: torch.optim.Optimizer) -> Any:
    """Return a copy of a scheduler, and of the schedulers in it, that drives another optimizer."""
    bound = copy.copy(scheduler)
    bound.optimizer = optimizer
    if NESTED in vars(bound):
        vars(bound)[NESTED] = [_bound(each, optimizer) for each in vars(bound)[NESTED]]
    if (refer_to_itself := getattr(bound, "_init_scale_fn", None)) is not None:  # CyclicLR has a weak method
        refer_to_itself()
    return bound
