"""Continuing in a torch training loop: parameter groups and gradient clipping for a widened model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mupscale_cli.checkpoints.hub.reading import open_named
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.groups import CLIP_WEIGHT, group_by_multipliers, scale_settings
from mupscale_cli.optimizers.multipliers import ScaledTensor, tensor_multipliers
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.optimizers.rules import optimizer_rule
from mupscale_cli.optimizers.state_plan import strip_wrappers
from mupscale_cli.record.reading import read_record
from mupscale_cli.text import suggest

Decay = Union[Literal["matrices", "all", "none"], Collection[str], Callable[[str, nn.Parameter], bool]]


def param_groups(
    model: nn.Module,
    checkpoint: str | Path,
    *,
    lr: float,
    weight_decay: float = 0.0,
    eps: float | None = None,
    optimizer: str = "adamw",
    decoupled: bool | None = None,
    decay: Decay | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Parameter groups with which a widened model trains as the narrow one did.

    The state of the narrow run, widened by `mupscale widen`, loads into the optimizer that is made of them.

    Args:
        model: the wide model, with or without wrappers.
        checkpoint: the widened checkpoint, whose mupscale.json says how each tensor was scaled.
        lr: of the narrow run.
        weight_decay: of the narrow run, for the parameters that are decayed.
        eps: of the narrow run; the groups say nothing of it where it is None and the optimizer has none.
        optimizer: its kind; how the step depends on the gradient decides about the multipliers.
        decoupled: whether weight decay is `p -= lr wd p`; the optimizer's default if None.
        decay: `matrices` decays parameters of two or more dimensions, as is done if it is None and as the Trainer of
            transformers has it for language models, `all` and `none` as they say; or the names of the decayed
            parameters, or a function of name and parameter.
        **settings: further settings for every group, for instance `betas`.

    Returns:
        Groups for any torch optimizer. Each also has `param_names` and `clip_weight`.

    Raises:
        MupscaleError: the checkpoint is not widened, or the model is not its model.

    Example:
        >>> optimizer = torch.optim.AdamW(param_groups(model, "tiny-x4", lr=3e-4))  # doctest: +SKIP
    """
    rule = optimizer_rule(optimizer)
    is_decoupled = rule.decoupled if decoupled is None else decoupled
    scaled = scaled_parameters(model, checkpoint)
    parameters = dict(model.named_parameters())
    eps_setting = {} if rule.eps is None else {"eps": rule.settings["eps"] if eps is None else eps}
    base = {"lr": lr, **eps_setting, **settings}
    groups = []
    for is_decayed in (True, False):
        names = [n for n, p in parameters.items() if p.requires_grad and _decays(decay, n, p) == is_decayed]
        by_name = {name: tensor_multipliers(scaled[name], rule, is_decoupled, settings) for name in names}
        for found, members in group_by_multipliers(by_name):
            wide = scale_settings({**base, "weight_decay": weight_decay if is_decayed else 0.0}, found)
            groups.append({"params": [parameters[name] for name in members], "param_names": members, **wide})
    return groups


def scaled_parameters(model: nn.Module, checkpoint: str | Path) -> dict[str, ScaledTensor]:
    """What the record of a widened checkpoint says of every parameter of a model, by its name there.

    Raises:
        CheckpointError: the checkpoint has no record, or lacks one of the parameters.
    """
    record = read_record(open_named(checkpoint))
    tensors = {tensor.name: tensor for tensor in scaled_tensors(record)}
    shared = {name: tensors[other] for name, other in record["shared"].items() if other in tensors}
    tensors = {**shared, **tensors}
    return {name: _find(name, parameter, tensors, model) for name, parameter in model.named_parameters()}


def _find(name: str, parameter: nn.Parameter, tensors: Mapping[str, ScaledTensor], model: nn.Module) -> ScaledTensor:
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    plain = strip_wrappers(name)
    for spelling in (plain, plain.removeprefix(prefix), prefix + plain):
        if spelling in tensors:
            found = tensors[spelling]
            if parameter.numel() and tuple(parameter.shape) != found.wide_shape:
                raise CheckpointError(
                    f"`{name}` of the model has the shape {tuple(parameter.shape)}, "
                    f"in the widened checkpoint it has {found.wide_shape}"
                )
            return found
    raise CheckpointError(
        f"the model's parameter `{name}` is not in the widened checkpoint", hint=suggest(plain, tensors)
    )


def _decays(decay: Decay | None, name: str, parameter: nn.Parameter) -> bool:
    if decay is None or isinstance(decay, str):
        if decay not in (None, "matrices", "all", "none"):
            raise PlanError(f"`decay` is `{decay}`", hint="say matrices, all or none, or give names or a function")
        return decay == "all" or (decay != "none" and parameter.dim() > 1)
    return bool(decay(name, parameter)) if callable(decay) else name in decay


def clip_grad_norm_(optimizer: torch.optim.Optimizer | Iterable[Mapping[str, Any]], max_norm: float) -> Tensor:
    """Clip gradients as the narrow run clipped them: by a norm that counts every unit once.

    The copies of an element have m gradients of 1 / (m c) its own, so each tensor's squared norm is
    weighed with m c^2 (page `theory`). The scale is that of `torch.nn.utils.clip_grad_norm_`.

    Args:
        optimizer: made of `param_groups`, or its groups.
        max_norm: largest norm.

    Returns:
        The weighted norm before clipping.
    """
    groups: list[Mapping[str, Any]] = list(
        optimizer.param_groups if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    )
    squared = []
    for group in groups:
        gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
        if gradients:
            squared.append(group[CLIP_WEIGHT] * get_total_norm(gradients).square())
    total = (
        torch.stack([value.to(squared[0].device) for value in squared]).sum().sqrt() if squared else torch.tensor(0.0)
    )
    if not math.isinf(max_norm):
        clip_grads_with_norm_([parameter for group in groups for parameter in group["params"]], max_norm, total)
    return total
