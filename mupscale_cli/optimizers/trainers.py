"""Hyperparameters in the forms that trainers read. Text only; no trainer is imported.

Each form carries what its trainer can express; `missing` says what it cannot.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.hyperparameters import Group, Hyperparameters
from mupscale_cli.optimizers.multipliers import ScaledTensor
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.optimizers.rules import OPTIMIZERS
from mupscale_cli.text import listed, starred, suggest

if TYPE_CHECKING:
    from mupscale_cli.record.types import Growth

_CLIPPING = (
    "the trainer clips by the plain norm, in which copies count more or less than once; where it clips, steps differ"
)


@dataclass(frozen=True)
class RenderedSettings:
    """A form's text, and what it cannot say."""

    text: str
    missing: tuple[str, ...] = ()


def document(found: Hyperparameters) -> dict[str, Any]:
    """Everything as plain values."""
    from mupscale_cli.record.documents import document_head

    settings = found.settings
    return {
        **document_head("hparams"),
        "optimizer": found.rule.name,
        "narrow": {
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
            "eps": settings.eps,
            "betas": list(settings.betas) if settings.betas else None,
        },
        "decoupled_weight_decay": found.decoupled,
        "formulas": found.formulas,
        "groups": [
            {
                "tensors": list(group.tensors),
                "pattern": group.pattern,
                "lr": group.lr,
                "eps": group.eps,
                "weight_decay": group.weight_decay,
                "clip_weight": group.clip_weight,
                "coefficient": group.scales[0] if group.scales else None,
                "multiplicity": group.scales[1] if group.scales else None,
            }
            for group in found.groups
        ],
        "warnings": list(found.warnings),
        "advice": list(found.advice),
    }


def _json(found: Hyperparameters, _record: Growth) -> RenderedSettings:
    return RenderedSettings(json.dumps(document(found), indent=2))


def _yaml(found: Hyperparameters, _record: Growth) -> RenderedSettings:
    return RenderedSettings(yaml.safe_dump(document(found), sort_keys=False, width=10_000).rstrip())


def _arguments(found: Hyperparameters, group: Group) -> dict[str, Any]:
    """The constructor's arguments of one group."""
    arguments: dict[str, Any] = {"lr": group.lr, "weight_decay": group.weight_decay}
    if group.eps is not None:
        arguments["eps"] = group.eps
    if found.settings.betas is not None:
        arguments["betas"] = found.settings.betas
    return arguments


def _torch(found: Hyperparameters, _record: Growth) -> RenderedSettings:
    name = found.rule.class_names.get("torch")
    lines = ["import re", "", "import torch", "", "GROUPS = ["]
    for group in found.groups:
        arguments = {"pattern": group.pattern, **_arguments(found, group), "clip_weight": group.clip_weight}
        lines.append(f"    {arguments!r},")
    lines += [
        "]",
        "",
        "",
        "def param_groups(model: torch.nn.Module) -> list[dict]:",
        "    groups = []",
        "    for group in GROUPS:",
        "        named = [(n, p) for n, p in model.named_parameters() if re.search(group['pattern'], n)]",
        "        settings = {key: value for key, value in group.items() if key != 'pattern'}",
        "        params, names = [p for _, p in named], [n for n, _ in named]",
        "        groups.append({'params': params, 'param_names': names, **settings})",
        "    return groups",
    ]
    if name is not None:
        lines += ["", "", f"# optimizer = {name}(param_groups(model))"]
    return RenderedSettings("\n".join(lines))


def _torchtitan(found: Hyperparameters, _record: Growth) -> RenderedSettings:
    name = found.rule.class_names.get("torchtitan")
    if name is None:
        known = ", ".join(sorted(rule.name for rule in OPTIMIZERS.values() if "torchtitan" in rule.class_names))
        raise PlanError(f"torchtitan has no {found.rule.name} whose groups are set by pattern", hint=f"known: {known}")
    groups = [
        f"    ParamGroupConfig(pattern={group.pattern!r}, optimizer_name={name!r}, "
        f"optimizer_kwargs={_arguments(found, group)!r}),"
        for group in found.groups
    ]
    return RenderedSettings("\n".join(["param_groups=[", *groups, "]"]), (_CLIPPING,))


def _nemo(found: Hyperparameters, _record: Growth) -> RenderedSettings:
    overrides = []
    for group in found.groups:
        decay = group.multipliers.weight_decay if group.is_decayed else 0.0
        if (group.multipliers.lr, decay) != (1.0, 1.0):
            overrides.append({"pattern": group.pattern, "lr_mult": group.multipliers.lr, "wd_mult": decay})
    text = yaml.safe_dump({"optimizer": {"param_group_overrides": overrides}}, sort_keys=False, width=10_000)
    return RenderedSettings(text.rstrip(), (*_eps(found), _CLIPPING))


def _eps(found: Hyperparameters) -> tuple[str, ...]:
    values = sorted({group.eps for group in found.groups if group.eps is not None})
    if len(values) < 2:
        return ()
    shown = ", ".join(f"{value:.3g}" for value in values)
    return (f"eps cannot be set for a group; the exact ones are {shown}, so take the smallest",)


def _megatron(found: Hyperparameters, _record: Growth) -> RenderedSettings:
    lines = [
        "from megatron.core.optimizer import ParamKey",
        "from megatron.core.optimizer_param_scheduler import ParamGroupOverride",
        "",
        "config_overrides = {  # MIN_LR: the narrow run's",
    ]
    for group in found.groups:
        names = tuple(dict.fromkeys(starred(name) for name in group.tensors))
        decay = group.multipliers.weight_decay if group.is_decayed else 0.0
        lines.append(
            f"    ParamKey(name={names!r}): ParamGroupOverride(max_lr={group.lr!r}, "
            f"min_lr=MIN_LR * {group.multipliers.lr!r}, wd_mult={decay!r}),"
        )
    note = "names are those of the checkpoint; Megatron's own model calls its parameters differently"
    return RenderedSettings("\n".join([*lines, "}"]), (note, *_eps(found), _CLIPPING))


def _base_shapes(found: Hyperparameters, record: Growth) -> RenderedSettings:
    tensors = scaled_tensors(record)
    shapes = {
        tensor.name: [n if n != w else None for n, w in zip(tensor.shape, tensor.wide_shape, strict=True)]
        for tensor in tensors
    }
    rates = {name: group.multipliers.lr for group in found.groups for name in group.tensors}
    other = [tensor.name for tensor in tensors if rates[tensor.name] != _mup_rate(tensor)]
    missing = ["set it with `mup.set_base_shapes(model, FILE, rescale_params=False)`"]
    if "bsh" not in found.rule.class_names:
        missing.append(f"compared with mup's Adam; {found.rule.name} is scaled otherwise")
    if other:
        shown = listed(other[:4])
        missing.append(f"mup gives other learning rates than the exact ones to {shown}")
    return RenderedSettings(yaml.safe_dump(shapes, sort_keys=False).rstrip(), (*missing, *_eps(found), _CLIPPING))


def _mup_rate(tensor: ScaledTensor) -> float:
    """What MuAdam multiplies the learning rate by: fan-in base over fan-in, of tensors with two infinite dimensions."""
    grown = [(n, w) for n, w in zip(tensor.shape, tensor.wide_shape, strict=True) if n != w]
    return grown[-1][0] / grown[-1][1] if len(grown) > 1 else 1.0


_RENDERERS: Mapping[str, Callable[[Hyperparameters, Growth], RenderedSettings]] = {
    "json": _json,
    "yaml": _yaml,
    "torch": _torch,  # parameter groups, as Python
    "torchtitan": _torchtitan,  # its `OptimizersContainer.Config.param_groups`
    "nemo": _nemo,  # NeMo Automodel's `param_group_overrides`
    "megatron": _megatron,  # Megatron Core's `config_overrides`
    "bsh": _base_shapes,  # of microsoft/mup
}
TRAINER_FORMATS = ("table", *_RENDERERS)  # the table is for people


def render(form: str, found: Hyperparameters, record: Growth) -> RenderedSettings:
    """Render hyperparameters in a trainer's form.

    Args:
        form: one of `TRAINER_FORMATS` other than `table`.
        found: the hyperparameters.
        record: mupscale.json, for shapes.

    Raises:
        PlanError: the form is not known, or cannot say it at all.
    """
    if form not in _RENDERERS:
        raise PlanError(f"there is no form `{form}`", hint=suggest(form, TRAINER_FORMATS))
    return _RENDERERS[form](found, record)
