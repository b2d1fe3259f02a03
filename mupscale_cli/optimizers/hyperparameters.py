"""Hyperparameters with which a widened model trains like the narrow one. No torch.

They follow from the coefficient and multiplicity of each tensor in the record of the widening.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.caveats import MAX_NAMED, caveats
from mupscale_cli.optimizers.groups import group_by_multipliers
from mupscale_cli.optimizers.multipliers import Multipliers, ScaledTensor, tensor_multipliers
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.optimizers.rules.powers import L2_DECAY, NORM_WEIGHT
from mupscale_cli.optimizers.rules.rule import OptimizerRule
from mupscale_cli.optimizers.rules.table import optimizer_rule
from mupscale_cli.text import listed

if TYPE_CHECKING:
    from mupscale_cli.record.types import Growth


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of the narrow run.

    Attributes:
        lr: learning rate; None if the optimizer computes its own.
        optimizer: a key of `rules.OPTIMIZERS`.
        weight_decay: weight decay of the decayed tensors.
        eps: the term that is added to the root of the second moment.
        betas: decay rates of the moments; None for the optimizer's defaults.
        decoupled: True for `p -= lr wd p`, False for `g += wd p`; None for the optimizer's default.
        decay: `matrices` decays tensors of two or more dimensions, `all` every tensor, `none` no tensor; or the names
            of the tensors that it decays.
        adjust_lr: Muon's `adjust_lr_fn`.
        further: the optimizer's other settings, such as SGD's momentum, as far as the state tells them.
        depth: `completep` scales the blocks of a deeper model as CompleteP does; None keeps their hyperparameters.
        sources: where each of these comes from: `option`, `sweep`, `state` or `default`.
    """

    lr: float | None
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    eps: float = 1e-8
    betas: tuple[float, float] | None = None
    decoupled: bool | None = None
    decay: str | Collection[str] = "matrices"
    adjust_lr: str | None = None
    depth: str | None = None
    further: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def decays(self, tensor: ScaledTensor) -> bool:
        """Tell whether weight decay applies to a tensor."""
        if isinstance(self.decay, str):
            return self.decay == "all" or (self.decay == "matrices" and len(tensor.wide_shape) > 1)
        return tensor.name in self.decay


@dataclass(frozen=True)
class Group:
    """Tensors that share hyperparameters.

    Attributes:
        tensors: the names of the tensors.
        pattern: a regular expression that matches these names and no other names of the model.
        lr: learning rate; None if the optimizer computes its own.
        eps: None if the optimizer has none.
        weight_decay: weight decay, as the optimizer defines it.
        clip_weight: weight of the tensors' squared gradient norm in the global norm.
        multipliers: multipliers of the narrow run's values.
        scales: coefficient and multiplicity if all the tensors have the same, else None.
        is_decayed: whether weight decay applies to the tensors.
    """

    tensors: tuple[str, ...]
    pattern: str
    lr: float | None
    eps: float | None
    weight_decay: float
    clip_weight: float
    multipliers: Multipliers
    scales: tuple[float, int] | None
    is_decayed: bool


@dataclass(frozen=True)
class Hyperparameters:
    """The hyperparameters of a widened model.

    Attributes:
        rule: the rule of the optimizer.
        settings: the hyperparameters of the narrow run.
        decoupled: whether weight decay is decoupled from the gradient.
        groups: the tensors by group, decayed groups first.
        warnings: what is not exact, and why.
        advice: settings that break the transfer of learning rates, according to large studies.
    """

    rule: OptimizerRule
    settings: Settings
    decoupled: bool
    groups: tuple[Group, ...]
    warnings: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def formulas(self) -> dict[str, str]:
        """The formula of each value in c and m (page `theory`)."""
        rule = self.rule
        shape = " x shape factor" if rule.shape_factor else ""
        decay = "wd / factor of lr" if self.decoupled else L2_DECAY.times("wd")
        return {
            **({"lr": rule.lr.times("lr") + shape} if rule.has_rate else {}),
            **({} if rule.eps is None else {"eps": rule.eps.times("eps")}),
            "weight_decay": decay if rule.decay is None else rule.decay.times("wd"),
            "clip_weight": str(NORM_WEIGHT),
        }


def hyperparameters(
    record: Growth, settings: Settings, proxy: Mapping[str, ScaledTensor] = MappingProxyType({})
) -> Hyperparameters:
    """Map the narrow run's hyperparameters to a widened model.

    Args:
        record: the record of the widening, from mupscale.json.
        settings: the hyperparameters of the narrow run, or of a proxy that was widened into the narrow model.
        proxy: the tensors of that widening by name; empty if the settings are the narrow run's.

    Raises:
        MupscaleError: the optimizer is unknown, a value is impossible, or the proxy does not fit.
    """
    rule = optimizer_rule(settings.optimizer)
    rule = rule.with_settings({**rule.settings, **settings.further})
    _check(settings)
    if settings.depth is not None and (rule.name != "adamw" or settings.decoupled is False):
        raise PlanError(f"CompleteP defines its multipliers for AdamW, not for {rule.title} or L2 decay")
    tensors = {tensor.name: _compose(tensor, proxy) for tensor in scaled_tensors(record)}
    decoupled = rule.decoupled if settings.decoupled is None else settings.decoupled

    def rule_of(tensor: ScaledTensor) -> OptimizerRule:
        decays = settings.weight_decay if settings.decays(tensor) else 0.0
        own = {**rule.settings, **settings.further, "weight_decay": decays}
        return optimizer_rule(settings.optimizer).with_settings(own)

    by_name = {
        name: tensor_multipliers(tensor, rule_of(tensor), decoupled, {"adjust_lr_fn": settings.adjust_lr})
        for name, tensor in tensors.items()
    }
    if settings.depth is not None:
        ratios = {name: blocks["wide_size"] / blocks["size"] for name, blocks in record["blocks"].items()}
        by_name = {name: _with_completep(found, tensors[name], ratios) for name, found in by_name.items()}
    groups = []
    for is_decayed in (True, False):
        names = [name for name, tensor in tensors.items() if settings.decays(tensor) == is_decayed]
        for multipliers, members in group_by_multipliers({name: by_name[name] for name in names}):
            scales = {tensors[name].parts for name in members}
            same = next(iter(scales)) if len(scales) == 1 else ()
            groups.append(
                Group(
                    tensors=tuple(members),
                    pattern=name_pattern(members, tensors),
                    lr=None if settings.lr is None else settings.lr * multipliers.lr,
                    eps=None if rule.eps is None else settings.eps * multipliers.eps,
                    weight_decay=settings.weight_decay * multipliers.weight_decay if is_decayed else 0.0,
                    clip_weight=multipliers.clip,
                    multipliers=multipliers,
                    scales=same[0] if len(same) == 1 else None,
                    is_decayed=is_decayed,
                )
            )
    warnings = _warnings(tensors.values(), rule, settings, decoupled)
    return Hyperparameters(
        rule, settings, decoupled, tuple(groups), warnings, _advice(tensors.values(), rule, settings, decoupled)
    )


def _with_completep(multipliers: Multipliers, tensor: ScaledTensor, ratios: Mapping[str, float]) -> Multipliers:
    """Return the multipliers of a tensor in a deeper stack by CompleteP (arXiv 2505.01618, table 1, with alpha = 1).

    CompleteP multiplies each block's output by 1/r in a stack r times as deep, and eps of the block by 1/r; learning
    rates stay. The multiplier is part of the last projection here. Its own learning rate is then 1/r times as large,
    its weight decay r times, and its eps stays (page `theory`).

    Args:
        multipliers: the multipliers without CompleteP.
        tensor: the tensor.
        ratios: r of each stack that became deeper.
    """
    ratio = ratios.get(tensor.block.stack, 1.0) if tensor.block is not None else 1.0
    if tensor.block is not None and tensor.block.writes:
        return replace(multipliers, lr=multipliers.lr / ratio, weight_decay=multipliers.weight_decay * ratio)
    return replace(multipliers, eps=multipliers.eps / ratio)


def _compose(tensor: ScaledTensor, proxy: Mapping[str, ScaledTensor]) -> ScaledTensor:
    """Compose the widening of a tensor with that of the proxy: coefficients and multiplicities multiply."""
    if not proxy:
        return tensor
    first = proxy.get(tensor.name)
    counts = {1, len(tensor.parts), len(first.parts)} if first else set()
    if first is None or len(counts) > 2:
        raise PlanError(
            f"the sweep's proxy has no tensor that becomes `{tensor.name}`",
            hint="the proxy belongs to another checkpoint; run the sweep on this one",
        )
    count = max(len(first.parts), len(tensor.parts))
    pairs = zip(first.parts * (count // len(first.parts)), tensor.parts * (count // len(tensor.parts)), strict=True)
    parts = tuple((c * d, m * n) for (c, m), (d, n) in pairs)
    return replace(tensor, parts=parts, shape=first.shape)


def _check(settings: Settings) -> None:
    for name, value in (("lr", settings.lr or 0), ("weight decay", settings.weight_decay), ("eps", settings.eps)):
        if not 0 <= value < float("inf"):
            raise PlanError(f"the {name} is {value}, expected a finite number of at least 0")
    if isinstance(settings.decay, str) and settings.decay not in ("matrices", "all", "none"):
        raise PlanError(f"unknown value `--decay {settings.decay}`", hint="known: matrices, all, none")
    if settings.depth not in (None, "completep"):
        raise PlanError(f"unknown value `--depth {settings.depth}`", hint="known: completep")


def name_pattern(names: Iterable[str], all_names: Iterable[str]) -> str:
    """Return a regular expression that matches only these names; layer numbers match any number if that is possible."""
    wanted = set(names)
    others = [name for name in all_names if name not in wanted]
    short = dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in sorted(wanted))
    exact = []
    for pattern in short:
        if any(re.fullmatch(pattern, other) for other in others):
            exact += [re.escape(name) for name in sorted(wanted) if re.fullmatch(pattern, name)]
        else:
            exact.append(pattern)
    return f"^({'|'.join(exact)})$"


def _warnings(
    tensors: Iterable[ScaledTensor], rule: OptimizerRule, settings: Settings, decoupled: bool
) -> tuple[str, ...]:
    tensors = list(tensors)
    warnings = list(caveats(rule, tensors, decoupled, {"eps": settings.eps, "weight_decay": settings.weight_decay}))
    offsets = [
        t.name for t in tensors if t.offset and settings.weight_decay and settings.decays(t) and t.parts[0][0] != 1
    ]
    if offsets:
        warnings.append(
            f"{listed(offsets, MAX_NAMED)} store a gain as its difference from 1, so weight decay acts on that "
            "difference, not on the gain; do not decay them (`--decay matrices`)"
        )
    other = [tensor.name for tensor in tensors if not rule.trains(tensor.shape)]
    if other:
        warnings.append(
            f"{rule.title} only trains matrices; train {listed(other, MAX_NAMED)} with AdamW and its own table"
        )
    return tuple(warnings)


def _advice(
    tensors: Iterable[ScaledTensor], rule: OptimizerRule, settings: Settings, decoupled: bool
) -> tuple[str, ...]:
    """Advise against choices that break the transfer of learning rates across widths, according to large studies."""
    study = "arXiv 2404.05728"
    advice = []
    if any("norm" in tensor.name and len(tensor.shape) == 1 for tensor in tensors):
        advice.append(f"trainable norm gains can break the transfer of the learning rate to other widths ({study})")
    advice += rule.advice
    if decoupled and settings.weight_decay >= 0.1:  # the strength that the study calls strong
        advice.append(
            f"decoupled weight decay of {settings.weight_decay:g} is strong and can break transfer ({study}); if you "
            "need it, keep lr x wd constant across widths, as these groups do (arXiv 2510.19093)"
        )
    return tuple(advice)
