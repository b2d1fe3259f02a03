"""Continue training in a torch loop: parameter groups and gradient clipping for a widened model."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mupscale_cli.architecture.wrappers import strip_wrappers
from mupscale_cli.checkpoints.hub.reading import open_named
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.caveats import warn_inexact
from mupscale_cli.optimizers.groups import group_by_multipliers, scale_settings
from mupscale_cli.optimizers.multipliers import CLIP_WEIGHT, ScaledTensor, tensor_multipliers
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.optimizers.rules.table import optimizer_rule
from mupscale_cli.record.reading import adapter_growth, read_record
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
    beside: str | None = None,
    decoupled: bool | None = None,
    decay: Decay | None = None,
    adapter: str | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Return parameter groups with which a widened model trains like the narrow one.

    An optimizer created from these groups can load the state that `mupscale widen` writes.

    Args:
        model: the wide model, with or without wrappers.
        checkpoint: the widened checkpoint; its mupscale.json records how each tensor was scaled.
        lr: the narrow run's learning rate.
        weight_decay: the narrow run's weight decay, for the decayed parameters.
        eps: the narrow run's eps. Default: the optimizer's; groups have no eps if the optimizer has none.
        optimizer: the kind of optimizer, whose step determines the multipliers. One that trains only matrices, such as
            Muon, gets only the matrices between hidden units, without embeddings and readout.
        beside: an optimizer that trains a part of the parameters; these groups have the others.
        decoupled: whether weight decay is `p -= lr wd p`. Default: the optimizer's.
        decay: `matrices` decays parameters of two or more dimensions, as the Trainer of transformers does for
            language models; `all` decays every parameter, `none` no parameter. Also the names of the decayed
            parameters, or a function of name and parameter. Default: `matrices`.
        adapter: name of an adapter that was widened with the checkpoint, if `model` is a model of peft that trains it.
        **settings: further settings for every group, for instance `betas`.

    Returns:
        Groups for any torch optimizer. Each group also has `param_names`, `clip_weight`, `lr_factor` and
            `weight_decay_factor`.

    Raises:
        MupscaleError: the checkpoint is not a widened one, or the model does not fit it.

    Example:
        >>> optimizer = torch.optim.AdamW(param_groups(model, "tiny-x4", lr=3e-4))  # doctest: +SKIP
    """
    usual = optimizer_rule(optimizer).settings
    given = {**usual, **settings}
    rule = optimizer_rule(optimizer).with_settings(given)
    is_decoupled = rule.decoupled if decoupled is None else decoupled
    scaled = scaled_parameters(model, checkpoint, adapter)
    parameters = dict(model.named_parameters())
    eps_setting = {} if rule.eps is None else {"eps": rule.settings["eps"] if eps is None else eps}
    base = {**{key: usual[key] for key in rule.scaled if key in usual}, "lr": lr, **eps_setting, **settings}
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    if rule.matrices_only or (beside is not None and optimizer_rule(beside).matrices_only):
        hidden = hidden_matrices(model)
        trained = {name: p for name, p in trained.items() if (name in hidden) == rule.matrices_only}
    warn_inexact([(rule, [scaled[name] for name in trained])])
    groups = []
    for is_decayed in (True, False):
        names = [name for name, p in trained.items() if _decays(decay, name, p) == is_decayed]
        decayed_by = weight_decay if is_decayed else 0.0
        own = optimizer_rule(optimizer).with_settings({**given, "weight_decay": decayed_by})
        by_name = {name: tensor_multipliers(scaled[name], own, is_decoupled, settings) for name in names}
        for multipliers, members in group_by_multipliers(by_name):
            wide = scale_settings({**base, "weight_decay": decayed_by}, multipliers)
            groups.append({"params": [parameters[name] for name in members], "param_names": members, **wide})
    return groups


def hidden_matrices(model: nn.Module) -> set[str]:
    """Return the names of the matrices between hidden units: neither embeddings nor readouts.

    Muon's authors leave those to AdamW, as well as everything that is not a matrix. A model that does not name its
    readout has one of as many rows as an embedding.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    others = {id(module.weight) for module in embeddings}
    vocabularies = {module.num_embeddings for module in embeddings}
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(getattr(output, "weight", None), nn.Parameter):
        others.add(id(output.weight))
        vocabularies.clear()  # a hidden matrix may have as many rows
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and id(parameter) not in others and parameter.shape[0] not in vocabularies
    }


def scaled_parameters(model: nn.Module, checkpoint: str | Path, adapter: str | None = None) -> dict[str, ScaledTensor]:
    """Return the recorded scaling of every parameter of a model, under the model's names.

    Args:
        model: the wide model.
        checkpoint: the widened checkpoint.
        adapter: name of a widened adapter, whose trained parameters alone are returned.

    Raises:
        CheckpointError: the checkpoint has no record, or lacks one of the parameters.
    """
    record = read_record(open_named(checkpoint))
    if adapter is not None:
        tensors = {tensor.name: tensor for tensor in scaled_tensors(adapter_growth(record, adapter))}
        return {n: _find(n, p, tensors, model) for n, p in model.named_parameters() if p.requires_grad}
    tensors = {tensor.name: tensor for tensor in scaled_tensors(record)}
    shared = {name: tensors[other] for name, other in record["shared"].items() if other in tensors}
    tensors = {**shared, **tensors}
    tensors = {**{strip_wrappers(name): tensor for name, tensor in tensors.items()}, **tensors}
    parameters = dict(model.named_parameters())
    for outer in _outer_prefixes(parameters):
        if all(_spelled(name.removeprefix(outer), tensors, model) for name in parameters):
            break
    else:
        outer = ""
    return {name: _find(name, parameter, tensors, model, outer) for name, parameter in parameters.items()}


def _outer_prefixes(names: Iterable[str]) -> Iterator[str]:
    """Yield the prefixes with which a module may hold the model in an attribute: ``, `model.`, `net.model.`."""
    parts = next(iter(names), "").split(".")
    yield from ("".join(f"{part}." for part in parts[:count]) for count in range(len(parts)))


def _spelled(name: str, tensors: Mapping[str, ScaledTensor], model: nn.Module) -> str | None:
    """Return the name under which the checkpoint has a parameter; None if it lacks it."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    plain = strip_wrappers(name)
    return next((s for s in (name, plain, plain.removeprefix(prefix), prefix + plain) if s in tensors), None)


def _find(
    name: str, parameter: nn.Parameter, tensors: Mapping[str, ScaledTensor], model: nn.Module, outer: str = ""
) -> ScaledTensor:
    spelled = _spelled(name.removeprefix(outer), tensors, model)
    if spelled is None:
        raise CheckpointError(
            f"the model's parameter `{name}` is not in the widened checkpoint",
            hint=suggest(strip_wrappers(name), tensors),
        )
    if parameter.numel() and tuple(parameter.shape) != tensors[spelled].wide_shape:
        raise CheckpointError(
            f"the model's `{name}` has the shape {tuple(parameter.shape)}, "
            f"but the widened checkpoint has {tensors[spelled].wide_shape}"
        )
    return tensors[spelled]


def _decays(decay: Decay | None, name: str, parameter: nn.Parameter) -> bool:
    if decay is None or isinstance(decay, str):
        if decay not in (None, "matrices", "all", "none"):
            raise PlanError(
                f"unknown `decay` value `{decay}`", hint="use matrices, all or none, names of parameters, or a function"
            )
        return decay == "all" or (decay != "none" and parameter.dim() > 1)
    return bool(decay(name, parameter)) if callable(decay) else name in decay


def clip_grad_norm_(optimizer: torch.optim.Optimizer | Iterable[Mapping[str, Any]], max_norm: float) -> Tensor:
    """Clip gradients like the narrow run: by a norm that counts every unit once.

    The m copies of an element each have 1 / (m c) of its gradient, so each tensor's squared norm has the weight m c^2
    (page `theory`). Gradients are scaled as in `torch.nn.utils.clip_grad_norm_`.

    Args:
        optimizer: an optimizer created from `param_groups`, given to `scale_optimizer` or returned by `grow`, or its
            groups. Those of a model that is not widened count every unit once as they are.
        max_norm: the largest norm.

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
            norm: Any = get_total_norm(gradients)
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of a model that FSDP2 shards
            squared.append(group.get(CLIP_WEIGHT, 1.0) * norm.square())
    total = (
        torch.stack([value.to(squared[0].device) for value in squared]).sum().sqrt() if squared else torch.tensor(0.0)
    )
    if not math.isinf(max_norm):
        clip_grads_with_norm_([parameter for group in groups for parameter in group["params"]], max_norm, total)
    return total
