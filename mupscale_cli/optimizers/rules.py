"""What widening does to training, as arithmetic on coefficient c and multiplicity m. Floats only.

Everything follows from one fact (design.md section 2, "Gradients"): the wide network as a function
of W' = c R(W) is the narrow one as a function of W, and the m copies of an element are symmetric,
so each has the gradient g' = g / (m c). A wide step must be c R(narrow step).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mupscale_cli.errors import PlanError
from mupscale_cli.text import suggest

StateKind = Literal["linear", "quadratic", "same", "weight"]
_POWERS: dict[StateKind, int] = {"same": 0, "linear": 1, "quadratic": 2}
# How each entry of an optimizer's state depends on the gradient.
_STATE_KINDS: dict[str, StateKind] = {
    "exp_avg": "linear",
    "exp_avg_sq": "quadratic",
    "max_exp_avg_sq": "quadratic",
    "exp_inf": "linear",  # Adamax
    "momentum_buffer": "linear",
    "grad_avg": "linear",  # RMSprop, centered
    "square_avg": "quadratic",  # RMSprop
    "sum": "quadratic",  # Adagrad
    "step": "same",
    "mu_product": "same",  # NAdam
    "master_param": "weight",
    "master_weight": "weight",
    "fp32_param": "weight",
    "fp32": "weight",
}


@dataclass(frozen=True, slots=True)
class OptimizerRule:
    """How an optimizer's step depends on the gradient.

    Attributes:
        name: as users call it.
        c_power: the learning rate is multiplied by c ** c_power ...
        m_power: ... times m ** m_power.
        has_eps: eps stands beside a magnitude of the gradient, and does not only guard a division.
        decoupled: the default of its weight decay: `p -= lr wd p`, or `g += wd p` where it is not.
    """

    name: str
    c_power: float
    m_power: float
    has_eps: bool
    decoupled: bool


OPTIMIZERS = {
    rule.name: rule
    for rule in (
        OptimizerRule("adamw", 1, 0, has_eps=True, decoupled=True),
        OptimizerRule("adam", 1, 0, has_eps=True, decoupled=False),
        OptimizerRule("nadam", 1, 0, has_eps=True, decoupled=False),
        OptimizerRule("radam", 1, 0, has_eps=True, decoupled=False),
        OptimizerRule("adamax", 1, 0, has_eps=True, decoupled=False),
        OptimizerRule("sgd", 2, 1, has_eps=False, decoupled=False),
        OptimizerRule("lion", 1, 0, has_eps=False, decoupled=True),
        OptimizerRule("adagrad", 1, 0, has_eps=True, decoupled=False),
        OptimizerRule("rmsprop", 1, 0, has_eps=True, decoupled=False),
        # Orthogonalising R(M) / (m c) gives R(orth(M)) / sqrt(m).
        OptimizerRule("muon", 1, 0.5, has_eps=False, decoupled=True),
    )
}


@dataclass(frozen=True, slots=True)
class Multipliers:
    """By what the hyperparameters of a tensor are multiplied when it is widened (dimensionless).

    Attributes:
        lr: learning rate.
        eps: the term beside the root of the second moment.
        weight_decay: as the optimizer defines it.
        clip: weight of the tensor's squared gradient norm in the global norm.
    """

    lr: float
    eps: float
    weight_decay: float
    clip: float


def optimizer_rule(name: str) -> OptimizerRule:
    """The rule of an optimizer by its name, in any case.

    Raises:
        PlanError: it is not known.
    """
    rule = OPTIMIZERS.get(name.lower())
    if rule is None:
        raise PlanError(f"the optimizer `{name}` is not known", hint=suggest(name.lower(), OPTIMIZERS))
    return rule


def state_kind(key: str, keys: Collection[str]) -> StateKind | None:
    """How an entry of a parameter's state depends on the gradient; None if the key is unknown.

    Args:
        key: of the entry.
        keys: every key of that parameter's state: RMSprop's momentum is of normalised gradients.
    """
    if key == "momentum_buffer" and "square_avg" in keys:
        return "same"
    return _STATE_KINDS.get(key)


def state_scale(kind: StateKind, coefficient: float, multiplicity: float) -> float:
    """By what a state entry is multiplied: (1 / (m c)) ** power, from g' = g / (m c).

    Args:
        kind: `linear`, `quadratic` or `same`; a copy of the weight is expanded like the weight.
        coefficient: c.
        multiplicity: m.
    """
    return math.pow(multiplicity * coefficient, -_POWERS[kind])


def multipliers(
    rule: OptimizerRule, coefficient: float, multiplicity: float, *, decoupled: bool | None = None
) -> Multipliers:
    """The multipliers of a tensor's hyperparameters (the table of design.md section 2).

    Args:
        rule: the optimizer.
        coefficient: c.
        multiplicity: m.
        decoupled: how its weight decay works; the optimizer's default if not given.
    """
    c, m = coefficient, multiplicity
    lr = math.pow(c, rule.c_power) * math.pow(m, rule.m_power)
    eps = 1 / (m * c) if rule.has_eps else 1.0
    is_decoupled = rule.decoupled if decoupled is None else decoupled
    decay = 1 / lr if is_decoupled else 1 / (m * c * c)
    return Multipliers(lr, eps, decay, m * c * c)


def muon_shape_factor(shape: tuple[int, ...], adjust: str | None) -> float:
    """What torch.optim.Muon multiplies the learning rate by, for a matrix of rows x columns.

    Args:
        shape: of the matrix.
        adjust: its `adjust_lr_fn`: `original` (also None), or `match_rms_adamw`.
    """
    rows, columns = shape
    if adjust == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


@dataclass(frozen=True, slots=True)
class Scaled:
    """What widening did to one tensor, as far as its training is concerned.

    Attributes:
        name: of the wide tensor.
        parts: coefficient and multiplicity of each of its parts.
        shape: before.
        wide_shape: after.
        offset: o where the layer uses o + w.
    """

    name: str
    parts: tuple[tuple[float, int], ...]
    shape: tuple[int, ...]
    wide_shape: tuple[int, ...]
    offset: int = 0


def tensor_multipliers(
    tensor: Scaled, rule: OptimizerRule, settings: Mapping[str, Any], decoupled: bool
) -> Multipliers:
    """The multipliers of one tensor.

    Where its parts would need different ones (segments with scales of their own), no learning rate
    of the tensor is exact; those of its first part are taken, and `is_exact` says so.

    Args:
        tensor: the wide tensor.
        rule: the optimizer.
        settings: of its group; Muon's `adjust_lr_fn` makes the learning rate depend on the shape.
        decoupled: how the weight decay works.
    """
    c, m = tensor.parts[0]
    found = multipliers(rule, c, m, decoupled=decoupled)
    if rule.name != "muon" or len(tensor.shape) != 2 or 0 in (*tensor.shape, *tensor.wide_shape):
        return found
    adjust = settings.get("adjust_lr_fn")
    lr = found.lr * muon_shape_factor(tensor.shape, adjust) / muon_shape_factor(tensor.wide_shape, adjust)
    return Multipliers(lr, found.eps, 1 / lr, found.clip)


def is_exact(tensor: Scaled, rule: OptimizerRule) -> bool:
    """Whether one set of hyperparameters serves every part of a tensor."""
    return len({multipliers(rule, c, m) for c, m in tensor.parts}) == 1


def infer_optimizer(group: Mapping[str, Any], keys: Collection[str]) -> tuple[OptimizerRule, bool] | None:
    """Which optimizer a parameter group of a torch state dict belongs to, and whether its decay is decoupled.

    Args:
        group: its settings.
        keys: state keys of its parameters; may be empty before the first step.
    """
    decoupled = group.get("decoupled_weight_decay")
    if "exp_inf" in keys:  # its settings are Adam's
        return OPTIMIZERS["adamax"], False
    for name, marks in _GROUP_MARKS:
        if all(mark in group for mark in marks) and not (name == "lion" and "exp_avg_sq" in keys):
            rule = OPTIMIZERS[name]
            if rule.name == "adam" and decoupled is not False:
                # Before torch 2.7 the group did not say; the Trainer and most recipes use AdamW.
                rule = OPTIMIZERS["adamw"]
            return rule, rule.decoupled if decoupled is None else bool(decoupled)
    return None


# Settings that only the groups of one optimizer have, most telling first.
_GROUP_MARKS = (
    ("muon", ("ns_steps",)),
    ("rmsprop", ("alpha", "centered")),
    ("adagrad", ("lr_decay", "initial_accumulator_value")),
    ("nadam", ("momentum_decay",)),
    ("adam", ("betas", "amsgrad")),
    ("sgd", ("momentum", "dampening")),
    ("adam", ("betas", "eps")),
    ("lion", ("betas",)),
)
