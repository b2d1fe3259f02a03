"""Give a trainer's own optimizer the groups with which a widened model trains like the narrow one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mupscale_cli.architecture.wrappers import strip_wrappers
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.caveats import warn_inexact
from mupscale_cli.optimizers.groups import widen_groups
from mupscale_cli.optimizers.identity import identify_all, named_after
from mupscale_cli.optimizers.multipliers import CLIP_WEIGHT
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.optimizers.scheduler import regroup_scheduler
from mupscale_cli.optimizers.torch_groups import scaled_parameters
from mupscale_cli.text import listed

_PARAMS, _NAMES = "params", "param_names"


def scale_optimizer(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    checkpoint: str | Path,
    *,
    schedulers: Sequence[Any] = (),
    adapter: str | None = None,
) -> None:
    """Give an optimizer that was made as in the narrow run the groups of the wide model.

    Each of its groups is split into groups of parameters with equal multipliers, and learning rate, eps and weight
    decay are multiplied (page `theory`), as `mupscale widen` does with the groups of a stored state. So the state that
    it wrote loads into the optimizer. If the stored groups are others, because the narrow model was itself a widened
    one, the optimizer takes them over when it loads them.

    Args:
        optimizer: an optimizer with the hyperparameters of the narrow run. It has taken no step yet.
        model: the wide model, with or without wrappers, whose parameters it trains.
        checkpoint: the widened checkpoint; its mupscale.json records how each tensor was scaled.
        schedulers: the schedulers of its learning rates, if there are any yet; a list may be completed later.
        adapter: name of an adapter that was widened with the checkpoint, if `model` is a model of peft that trains it.

    Raises:
        MupscaleError: the checkpoint is not a widened one, the model does not fit it, the optimizer is of an unknown
            kind, or it has groups of a widened model already.

    Example:
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)  # doctest: +SKIP
        >>> mupscale.scale_optimizer(optimizer, model, "tiny-x4")  # doctest: +SKIP
        >>> optimizer.load_state_dict(torch.load("tiny-x4/optimizer.pt"))  # doctest: +SKIP
    """
    if is_scaled(optimizer):
        raise PlanError("the optimizer has the groups of a widened model already")
    by_name = dict(model.named_parameters())
    name_of = {id(parameter): name for name, parameter in by_name.items()}
    scaled = {n: replace(t, name=n) for n, t in scaled_parameters(model, checkpoint, adapter).items()}
    groups = [
        ({key: value for key, value in group.items() if key not in (_PARAMS, _NAMES)}, _names(group, name_of, scaled))
        for group in optimizer.param_groups
    ]
    states = {name_of[id(parameter)]: entries for parameter, entries in optimizer.state.items()}
    try:
        kinds = identify_all(groups, states, named_after(optimizer))
    except PlanError as error:  # its hints name options for state files
        hint = "use one that `mupscale hparams --help` lists"
        raise PlanError(f"{type(optimizer).__name__}: {error.message}", hint=hint) from error
    for name, entries in states.items():
        _scale_initial(name, entries, kinds.parameters[name].rule, scaled[name].parts)
    wide = widen_groups(groups, kinds.groups, lambda name: [scaled[name]])
    warn_inexact((group.rule, group.tensors) for group in wide)
    _regroup(optimizer, [(group.settings, group.names) for group in wide], by_name)
    for scheduler in schedulers:
        regroup_scheduler(scheduler, [(group.source, group.multipliers.lr) for group in wide])
    optimizer.register_load_state_dict_pre_hook(_StoredGroups(by_name, schedulers))


def follow_stored_groups(optimizer: torch.optim.Optimizer, model: nn.Module, schedulers: Sequence[Any] = ()) -> None:
    """Let an optimizer with other groups load the state of a model that grew during its run: it takes the groups over.

    Args:
        optimizer: an optimizer of all parameters that the stored one has.
        model: the wide model.
        schedulers: the schedulers of its learning rates, if there are any yet; a list may be completed later.
    """
    by_name = dict(model.named_parameters())
    name_of = {id(parameter): name for name, parameter in by_name.items()}
    for group in optimizer.param_groups:
        group[_NAMES] = [name_of[id(parameter)] for parameter in group[_PARAMS]]
    optimizer.register_load_state_dict_pre_hook(_StoredGroups(by_name, schedulers))


def is_scaled(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer has the groups of a widened model."""
    return all(CLIP_WEIGHT in group for group in optimizer.param_groups)


def _names(group: Mapping[str, Any], name_of: Mapping[int, str], scaled: Mapping[str, Any]) -> list[str]:
    names = [name_of.get(id(parameter), "") for parameter in group[_PARAMS]]
    if not scaled.keys() >= set(names):
        raise PlanError("the optimizer trains a parameter that is not one of the model's trained parameters")
    return names


def _scale_initial(
    name: str, entries: Mapping[str, Any], rule: OptimizerRule, parts: Sequence[tuple[float, int]]
) -> None:
    """Scale what an optimizer's constructor puts into its state, such as Adagrad's `initial_accumulator_value`."""
    if float(entries.get("step", 0)):
        raise PlanError(
            f"the optimizer has taken {float(entries['step']):g} steps with `{name}` already",
            hint="scale it where it is made, and load its state afterwards",
        )
    for key, value in entries.items():
        kind = rule.state.get(key)
        if isinstance(value, torch.Tensor) and value.any():
            if kind is None or kind.is_weight or len(set(parts)) > 1:
                raise PlanError(f"the optimizer's state already holds `{key}` of `{name}`, which cannot be scaled")
            value.mul_(kind.powers(*parts[0]))


def _regroup(
    optimizer: torch.optim.Optimizer,
    groups: Iterable[tuple[Mapping[str, Any], Sequence[str]]],
    by_name: Mapping[str, nn.Parameter],
) -> None:
    optimizer.param_groups[:] = [
        {**settings, _PARAMS: [by_name[name] for name in names], _NAMES: list(names)} for settings, names in groups
    ]


@dataclass
class _StoredGroups:
    """Takes over the groups of a stored state before an optimizer loads it, if they are others than its own.

    So they are after a second growth: its state has the groups of both.
    """

    by_name: Mapping[str, nn.Parameter]
    schedulers: Sequence[Any]

    def __call__(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        stored = state["param_groups"]
        if not all(CLIP_WEIGHT in group and _NAMES in group for group in stored):
            return
        plain = {strip_wrappers(name): name for name in self.by_name}
        names = [[plain.get(strip_wrappers(name), name) for name in group[_NAMES]] for group in stored]
        own = [group[_NAMES] for group in optimizer.param_groups]
        if names == own:
            return
        number = {name: index for index, members in enumerate(own) for name in members}
        strange = {name for members in names for name in members} ^ number.keys()
        if strange:
            raise CheckpointError(
                f"the stored state and the optimizer have different parameters: {listed(sorted(strange), 3)}"
            )
        _regroup(optimizer, list(zip(stored, names, strict=True)), self.by_name)
        for scheduler in self.schedulers:
            regroup_scheduler(scheduler, [(number[members[0]], 1.0) for members in names])
