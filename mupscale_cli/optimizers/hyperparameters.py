"""The hyperparameters with which a widened model trains as the narrow one did. No torch.

Everything comes from the record of the widening: coefficient and multiplicity of each tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.groups import group_by_multipliers
from mupscale_cli.optimizers.multipliers import Multipliers, ScaledTensor, is_exact, tensor_multipliers
from mupscale_cli.optimizers.recorded import scaled_tensors
from mupscale_cli.optimizers.rules import L2_DECAY, NORM_WEIGHT, OptimizerRule, optimizer_rule
from mupscale_cli.text import listed

if TYPE_CHECKING:
    from mupscale_cli.record.types import Growth

_MAX_NAMED = 4


@dataclass(frozen=True)
class Settings:
    """The hyperparameters of the narrow run.

    Attributes:
        optimizer: its name, a key of `rules.OPTIMIZERS`.
        lr: learning rate.
        weight_decay: of the tensors that are decayed.
        eps: the term beside the root of the second moment.
        betas: decay rates of the moments, None for the optimizer's own.
        decoupled: `p -= lr wd p` (True) or `g += wd p`; None for the optimizer's own.
        decay: `matrices` decays tensors of two or more dimensions, `all` and `none` as they say.
        adjust_lr: Muon's `adjust_lr_fn`.
    """

    lr: float
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    eps: float = 1e-8
    betas: tuple[float, float] | None = None
    decoupled: bool | None = None
    decay: str = "matrices"
    adjust_lr: str | None = None

    def decays(self, tensor: ScaledTensor) -> bool:
        """Whether weight decay acts on a tensor."""
        return self.decay == "all" or (self.decay == "matrices" and len(tensor.wide_shape) > 1)


@dataclass(frozen=True)
class Group:
    """Tensors that share hyperparameters.

    Attributes:
        tensors: their names.
        pattern: a regular expression that matches these names and no others of the model.
        lr: learning rate.
        eps: None where the optimizer has none.
        weight_decay: as the optimizer defines it.
        clip_weight: of the squared gradient norm of these tensors in the global norm.
        multipliers: of the narrow run's values.
        scales: coefficient and multiplicity, where all the tensors have the same.
        is_decayed: whether weight decay acts on them.
    """

    tensors: tuple[str, ...]
    pattern: str
    lr: float
    eps: float | None
    weight_decay: float
    clip_weight: float
    multipliers: Multipliers
    scales: tuple[float, int] | None
    is_decayed: bool


@dataclass(frozen=True)
class Hyperparameters:
    """The groups of a widened model.

    Attributes:
        rule: the optimizer.
        settings: of the narrow run.
        decoupled: how the weight decay works.
        groups: decayed ones first.
        warnings: what cannot be exact, and why.
        advice: what large studies found to break the transfer of learning rates.
    """

    rule: OptimizerRule
    settings: Settings
    decoupled: bool
    groups: tuple[Group, ...]
    warnings: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def formulas(self) -> dict[str, str]:
        """How each value follows from c and m (page `theory`)."""
        rule = self.rule
        shape = " x shape factor" if rule.shape_factor else ""
        return {
            "lr": rule.lr.times("lr") + shape,
            **({} if rule.eps is None else {"eps": rule.eps.times("eps")}),
            "weight_decay": "wd / factor of lr" if self.decoupled else L2_DECAY.times("wd"),
            "clip_weight": str(NORM_WEIGHT),
        }


def hyperparameters(
    record: Growth, settings: Settings, proxy: Mapping[str, ScaledTensor] = MappingProxyType({})
) -> Hyperparameters:
    """Map the narrow run's hyperparameters to a widened model.

    Args:
        record: its mupscale.json.
        settings: of the narrow run, or of a proxy of it.
        proxy: how the narrow model's tensors follow from those of the proxy that the settings are of, by name.

    Raises:
        MupscaleError: an unknown optimizer, an impossible value, a damaged record.
    """
    rule = optimizer_rule(settings.optimizer)
    _check(settings)
    tensors = {tensor.name: _from_proxy(tensor, proxy) for tensor in scaled_tensors(record)}
    decoupled = rule.decoupled if settings.decoupled is None else settings.decoupled

    by_name = {
        name: tensor_multipliers(tensor, rule, decoupled, {"adjust_lr_fn": settings.adjust_lr})
        for name, tensor in tensors.items()
    }
    groups = []
    for is_decayed in (True, False):
        names = [name for name, tensor in tensors.items() if settings.decays(tensor) == is_decayed]
        for found, members in group_by_multipliers({name: by_name[name] for name in names}):
            scales = {tensors[name].parts for name in members}
            same = next(iter(scales)) if len(scales) == 1 else ()
            groups.append(
                Group(
                    tensors=tuple(members),
                    pattern=name_pattern(members, tensors),
                    lr=settings.lr * found.lr,
                    eps=None if rule.eps is None else settings.eps * found.eps,
                    weight_decay=settings.weight_decay * found.weight_decay if is_decayed else 0.0,
                    clip_weight=found.clip,
                    multipliers=found,
                    scales=same[0] if len(same) == 1 else None,
                    is_decayed=is_decayed,
                )
            )
    warnings = _warnings(tensors.values(), rule, settings)
    return Hyperparameters(
        rule, settings, decoupled, tuple(groups), warnings, _advice(tensors.values(), rule, settings, decoupled)
    )


def _from_proxy(tensor: ScaledTensor, proxy: Mapping[str, ScaledTensor]) -> ScaledTensor:
    """A wide tensor as it follows from the proxy: coefficients and multiplicities of two widenings multiply."""
    if not proxy:
        return tensor
    first = proxy.get(tensor.name)
    counts = {1, len(tensor.parts), len(first.parts)} if first else set()
    if first is None or len(counts) > 2:
        raise PlanError(
            f"the sweep's proxy has no tensor that becomes `{tensor.name}`", hint="it was made for another checkpoint"
        )
    count = max(len(first.parts), len(tensor.parts))
    pairs = zip(first.parts * (count // len(first.parts)), tensor.parts * (count // len(tensor.parts)), strict=True)
    parts = tuple((c * d, m * n) for (c, m), (d, n) in pairs)
    return replace(tensor, parts=parts, shape=first.shape)


def _check(settings: Settings) -> None:
    for name, value in (("lr", settings.lr), ("weight decay", settings.weight_decay), ("eps", settings.eps)):
        if not 0 <= value < float("inf"):
            raise PlanError(f"the {name} is {value}; it must be a number of at least 0")
    if settings.decay not in ("matrices", "all", "none"):
        raise PlanError(f"`--decay {settings.decay}` is not known", hint="known: matrices, all, none")


def name_pattern(names: Iterable[str], all_names: Iterable[str]) -> str:
    """A regular expression for names, with any number for those of layers where that matches no others."""
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


def _warnings(tensors: Iterable[ScaledTensor], rule: OptimizerRule, settings: Settings) -> tuple[str, ...]:
    tensors = list(tensors)
    found = []
    inexact = [tensor.name for tensor in tensors if not is_exact(tensor, rule)]
    if inexact:
        named = listed(inexact, _MAX_NAMED)
        found.append(f"{named} concatenate parts that would need rates of their own; the first part's is given")
    offsets = [
        t.name for t in tensors if t.offset and settings.weight_decay and settings.decays(t) and t.parts[0][0] != 1
    ]
    if offsets:
        found.append(
            f"{listed(offsets, _MAX_NAMED)} store a gain as its difference from 1, so their decay is not that of the "
            "gain; leave them undecayed (`--decay matrices`)"
        )
    other = [tensor.name for tensor in tensors if len(tensor.shape) != 2]
    if rule.matrices_only and other:
        found.append(f"{rule.title} takes matrices; give {listed(other, _MAX_NAMED)} to AdamW, with its own table")
    return (*found, *rule.caveats)


def _advice(
    tensors: Iterable[ScaledTensor], rule: OptimizerRule, settings: Settings, decoupled: bool
) -> tuple[str, ...]:
    """Choices that large-scale studies found to break the transfer of learning rates across widths."""
    study = "arXiv 2404.05728"
    found = []
    if any("norm" in tensor.name and len(tensor.shape) == 1 for tensor in tensors):
        found.append(f"trainable norm gains can break the transfer of the learning rate to other widths ({study})")
    found += rule.advice
    if decoupled and settings.weight_decay >= 0.1:  # the strength that the study calls strong
        found.append(
            f"decoupled weight decay of {settings.weight_decay:g} is strong: it can break transfer ({study}); where it "
            "is needed, keep lr x wd constant over widths, as these groups do (arXiv 2510.19093)"
        )
    return tuple(found)
