"""Render hyperparameters in the formats that trainers read, as text; no trainer is imported.

Each format contains what its trainer supports; `missing` lists the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from mupscale_cli.checkpoints.layouts.table import LAYOUTS
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.groups import LR_FACTOR, scale_settings
from mupscale_cli.optimizers.hyperparameters import Group, Hyperparameters
from mupscale_cli.optimizers.multipliers import CLIP_WEIGHT, ScaledTensor
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.optimizers.trainers.writers import WRITERS, Writer
from mupscale_cli.text import listed, starred, suggest

if TYPE_CHECKING:
    from mupscale_cli.record.types import Record

_CLIPPING = (
    "the trainer clips by the plain norm, which counts copies more or less than once; steps differ when it clips"
)


@dataclass(frozen=True)
class RenderedSettings:
    """Hyperparameters as a trainer reads them, with notes about what is missing."""

    text: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wide:
    """A widened checkpoint as code names it.

    Attributes:
        path: its path.
        names: the names of its files beside the weights.
    """

    path: str
    names: frozenset[str] = frozenset()


Renderer = Callable[[Hyperparameters, "Record", Wide], RenderedSettings]


def document(hparams: Hyperparameters) -> dict[str, Any]:
    """Return the document that `hparams --json` prints."""
    from mupscale_cli.record.documents import document_head

    settings = hparams.settings
    return {
        **document_head("hparams"),
        "optimizer": hparams.rule.name,
        "narrow": {
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
            "eps": None if hparams.rule.eps is None else settings.eps,
            "betas": list(settings.betas) if settings.betas else None,
            "sources": dict(settings.sources),
        },
        "decoupled_weight_decay": hparams.decoupled,
        "formulas": hparams.formulas,
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
            for group in hparams.groups
        ],
        "warnings": list(hparams.warnings),
        "advice": list(hparams.advice),
    }


def _json(hparams: Hyperparameters, _record: Record, _wide: Wide) -> RenderedSettings:
    return RenderedSettings(json.dumps(document(hparams), indent=2))


def _yaml(hparams: Hyperparameters, _record: Record, _wide: Wide) -> RenderedSettings:
    return RenderedSettings(yaml.safe_dump(document(hparams), sort_keys=False, width=10_000).rstrip())


def _arguments(hparams: Hyperparameters, group: Group) -> dict[str, Any]:
    """Return the optimizer's constructor arguments for one group."""
    arguments: dict[str, Any] = {"lr": group.lr, "weight_decay": group.weight_decay}
    if group.eps is not None:
        arguments["eps"] = group.eps
    if hparams.settings.betas is not None:
        arguments["betas"] = hparams.settings.betas
    further = hparams.settings.further
    wide = scale_settings(further, group.multipliers)
    return {**arguments, **{key: wide[key] for key in further}}


def _torch(hparams: Hyperparameters, _record: Record, _wide: Wide) -> RenderedSettings:
    name = hparams.rule.class_names.get("torch")
    lines = ["import re", "", "import torch", "", "GROUPS = ["]
    for group in hparams.groups:
        factors = {CLIP_WEIGHT: group.clip_weight, LR_FACTOR: group.multipliers.lr}  # as `param_groups` adds them
        lines.append(f"    { ({'pattern': group.pattern, **_arguments(hparams, group), **factors})!r},")
    lines += [
        "]",
        "",
        "",
        "def param_groups(model: torch.nn.Module) -> list[dict]:",
        "    parameters = dict(model.named_parameters())",
        "    groups = []",
        "    for group in GROUPS:",
        "        names = [name for name in parameters if re.search(group['pattern'], name)]",
        "        settings = {key: value for key, value in group.items() if key != 'pattern'}",
        "        if names:  # a checkpoint may store what the model keeps in other parameters, or in none",
        "            groups.append({'params': [parameters[name] for name in names], 'param_names': names, **settings})",
        "    place = {name: number for number, name in enumerate(parameters)}",
        "    # In the order of a widened state: what decays, then what does not, each by its first parameter.",
        "    return sorted(groups, key=lambda group: (group['weight_decay'] == 0, place[group['param_names'][0]]))",
    ]
    if name is not None:
        lines += ["", "", f"# optimizer = {name}(param_groups(model))"]
    return RenderedSettings("\n".join(lines))


def _torchtitan(hparams: Hyperparameters, _record: Record, _wide: Wide) -> RenderedSettings:
    name = hparams.rule.class_names.get("torchtitan")
    if name is None:
        known = ", ".join(sorted(rule.name for rule in OPTIMIZERS.values() if "torchtitan" in rule.class_names))
        raise PlanError(
            f"torchtitan does not support parameter groups by pattern with {hparams.rule.name}", hint=f"known: {known}"
        )
    arguments = ({**_arguments(hparams, group), "clip_weight": group.clip_weight} for group in hparams.groups)
    groups = [
        f"    ParamGroupConfig(pattern={group.pattern!r}, optimizer_name={name!r}, optimizer_kwargs={each!r}),"
        for group, each in zip(hparams.groups, arguments, strict=True)
    ]
    return RenderedSettings("\n".join(["param_groups=[", *groups, "]"]), (_CLIPPING,))


def _nemo(hparams: Hyperparameters, _record: Record, _wide: Wide) -> RenderedSettings:
    overrides = []
    for group in hparams.groups:
        decay = group.multipliers.weight_decay if group.is_decayed else 0.0
        if (group.multipliers.lr, decay) != (1.0, 1.0):
            overrides.append({"pattern": group.pattern, "lr_mult": group.multipliers.lr, "wd_mult": decay})
    text = yaml.safe_dump({"optimizer": {"param_group_overrides": overrides}}, sort_keys=False, width=10_000)
    return RenderedSettings(text.rstrip(), (*_eps(hparams), _CLIPPING))


def _eps(hparams: Hyperparameters) -> tuple[str, ...]:
    values = sorted({group.eps for group in hparams.groups if group.eps is not None})
    if len(values) < 2:
        return ()
    shown = ", ".join(f"{value:.3g}" for value in values)
    return (f"the trainer has one eps for all groups; the exact values are {shown}: use the smallest",)


def _megatron(hparams: Hyperparameters, _record: Record, _wide: Wide) -> RenderedSettings:
    lines = [
        "from megatron.core.optimizer import ParamKey",
        "from megatron.core.optimizer_param_scheduler import ParamGroupOverride",
        "",
        "config_overrides = {  # MIN_LR: min_lr of the narrow run",
    ]
    for group in hparams.groups:
        names = tuple(dict.fromkeys(starred(name) for name in group.tensors))
        decay = group.multipliers.weight_decay if group.is_decayed else 0.0
        lines.append(
            f"    ParamKey(name={names!r}): ParamGroupOverride(max_lr={group.lr!r}, "
            f"min_lr=MIN_LR * {group.multipliers.lr!r}, wd_mult={decay!r}),"
        )
    note = "the names are those of the checkpoint; Megatron's own models name their parameters differently"
    return RenderedSettings("\n".join([*lines, "}"]), (note, *_eps(hparams), _CLIPPING))


def _base_shapes(hparams: Hyperparameters, record: Record, _wide: Wide) -> RenderedSettings:
    tensors = scaled_tensors(record)
    shapes = {
        tensor.name: [n if n != w else None for n, w in zip(tensor.shape, tensor.wide_shape, strict=True)]
        for tensor in tensors
    }
    rates = {name: group.multipliers.lr for group in hparams.groups for name in group.tensors}
    other = [tensor.name for tensor in tensors if rates[tensor.name] != _mup_rate(tensor)]
    missing = ["load it with `mup.set_base_shapes(model, FILE, rescale_params=False)`"]
    if "bsh" not in hparams.rule.class_names:
        missing.append(
            f"learning rates are compared with those of mup's Adam; mup scales {hparams.rule.name} differently"
        )
    if other:
        shown = listed(other[:4])
        missing.append(f"mup's learning rates differ from the exact ones for {shown}")
    return RenderedSettings(yaml.safe_dump(shapes, sort_keys=False).rstrip(), (*missing, *_eps(hparams), _CLIPPING))


def _mup_rate(tensor: ScaledTensor) -> float:
    """Return MuAdam's factor of the learning rate: base fan_in over fan_in if two dimensions are widened, else 1."""
    grown = [(n, w) for n, w in zip(tensor.shape, tensor.wide_shape, strict=True) if n != w]
    return grown[-1][0] / grown[-1][1] if len(grown) > 1 else 1.0


def _narrow_run(hparams: Hyperparameters) -> str:
    """Return the comment above code that says which optimizer the narrow run had."""
    settings = hparams.settings
    eps = {} if hparams.rule.eps is None else {"eps": settings.eps}
    betas = {} if settings.betas is None else {"betas": tuple(settings.betas)}
    arguments = {"lr": settings.lr, "weight_decay": settings.weight_decay, **eps, **betas, **settings.further}
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"# the narrow run's optimizer: {hparams.rule.class_names.get('torch', hparams.rule.title)}(..., {given})"


def _newly_set(hparams: Hyperparameters, resumes: bool) -> list[str]:
    """Return the settings that scaled groups do not have by themselves.

    A sweep's are those of its proxy, and its groups also have the proxy's multipliers; a state that is loaded replaces
    what options say.
    """
    sources = hparams.settings.sources
    if "sweep" in sources.values():
        fields = ["lr", "weight_decay", "eps", "betas"]
    else:
        fields = [key for key in ("lr", "weight_decay", "eps", "betas") if resumes and sources.get(key) == "option"]
    arguments = _arguments(hparams, hparams.groups[0])
    return [field for field in fields if arguments.get(field) is not None]


def _setting_lines(hparams: Hyperparameters, fields: Sequence[str]) -> tuple[str, ...]:
    """Return lines that set some settings of an optimizer's groups, which have names."""
    if not fields:
        return ()
    rows = []
    for group in hparams.groups:
        values = {key: value for key, value in _arguments(hparams, group).items() if key in fields}
        initial = {"initial_lr": values["lr"]} if "lr" in values else {}  # what schedules multiply
        rows.append(f"    {group.pattern!r}: { ({**values, **initial})!r},")
    return (
        "import re",
        "chosen = {  # by the names of parameters; set after a state is loaded, which has its own",
        *rows,
        "}",
        "for group in optimizer.param_groups:",
        "    group.update(next(new for names, new in chosen.items() if re.search(names, group['param_names'][0])))",
    )


def _out_of_reach(fields: Sequence[str]) -> tuple[str, ...]:
    """Return the note that a trainer's own lines do not set some settings."""
    if not fields:
        return ()
    named = listed([field.replace("_", " ") for field in fields])
    return (f"these lines do not set {named} as asked for; do so after the state is loaded, as `--format loop` does",)


def _of_layout(lines: Callable[[str], Sequence[str]]) -> Renderer:
    def render_lines(hparams: Hyperparameters, record: Record, wide: Wide) -> RenderedSettings:
        unset = _newly_set(hparams, record["optimizer_state"] is not None)
        return RenderedSettings("\n".join((_narrow_run(hparams), *lines(wide.path))), _out_of_reach(unset))

    return render_lines


def _of_writer(writer: Writer) -> Renderer:
    def render_lines(hparams: Hyperparameters, record: Record, wide: Wide) -> RenderedSettings:
        resumes = record["optimizer_state"] is not None and writer.wrote(wide.names)
        fields = _newly_set(hparams, resumes)
        lines = writer.lines(wide.path, resumes, _setting_lines(hparams, fields))
        unset = () if writer.sets else _out_of_reach(fields)
        return RenderedSettings("\n".join((_narrow_run(hparams), *lines)), unset)

    return render_lines


_OF_LAYOUTS = {layout.name: _of_layout(layout.next_lines) for layout in LAYOUTS if layout.next_lines is not None}
_RENDERERS: Mapping[str, Renderer] = {
    **_OF_LAYOUTS,  # the lines to change in a trainer's own loop
    "json": _json,
    "yaml": _yaml,
    "torch": _torch,  # parameter groups, as Python
    "torchtitan": _torchtitan,  # its `OptimizersContainer.Config.param_groups`
    "nemo": _nemo,  # NeMo Automodel's `param_group_overrides`
    "megatron": _megatron,  # Megatron Core's `config_overrides`
    "bsh": _base_shapes,  # base shapes of microsoft/mup
    **{writer.name: _of_writer(writer) for writer in WRITERS},  # code with mupscale's own functions
}
# For checkpoints of these trainers only.
LAYOUT_FORMATS = tuple(name for name, lines in _OF_LAYOUTS.items() if _RENDERERS[name] is lines)
# Lines of code that scale whatever optimizer a run has, after a comment on the narrow run's.
CODE_FORMATS = (*LAYOUT_FORMATS, *(writer.name for writer in WRITERS))
TRAINER_FORMATS = ("table", *_RENDERERS)  # people read the table


def render(format_name: str, hparams: Hyperparameters, record: Record, wide: Wide) -> RenderedSettings:
    """Render hyperparameters in a trainer's format.

    Args:
        format_name: one of `TRAINER_FORMATS` other than `table`.
        hparams: the hyperparameters.
        record: the record of the widening, for shapes.
        wide: the widened checkpoint.

    Raises:
        PlanError: the format is unknown, or does not support the optimizer.
    """
    if format_name not in _RENDERERS:
        raise PlanError(
            f"unknown format `{format_name}`",
            hint=suggest(format_name, TRAINER_FORMATS) or f"known: {', '.join(TRAINER_FORMATS)}",
        )
    return _RENDERERS[format_name](hparams, record, wide)


def render_several(format_name: str, several: Sequence[Hyperparameters], record: Record, wide: Wide) -> str:
    """Render the lines with which a run of several optimizers continues.

    Args:
        format_name: one of `CODE_FORMATS`.
        several: the hyperparameters of each optimizer.
        record: the record of the widening.
        wide: the widened checkpoint.
    """
    texts = [render(format_name, each, record, wide).text for each in several]
    heads = [text.partition("\n")[0] for text in texts]
    lines = texts[0].split("\n")[1:]
    if any("scale_optimizer(" in line for line in lines):
        lines = [
            "# one optimizer with the groups of all; separate ones are each scaled and loaded, and clipped together:",
            "# `mupscale.clip_grad_norm_([*first.param_groups, *second.param_groups], max_norm)`",
            *lines,
        ]
    return "\n".join([*heads, *lines])
