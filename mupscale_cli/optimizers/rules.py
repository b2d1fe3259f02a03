"""The table of optimizers: one `OptimizerRule` per optimizer, which the rest of the program reads. No torch.

All formulas follow from one fact (page `theory`): the wide network as a function of W' = c R(W) is the narrow network
as a function of W, and the m copies of an element are symmetric, so each has the gradient g' = g / (m c). A wide step
must be c R(narrow step).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mupscale_cli.errors import PlanError
from mupscale_cli.text import suggest

StateKind = Literal["linear", "quadratic", "same", "weight"]


@dataclass(frozen=True, slots=True)
class Powers:
    """A product of powers of the coefficient c and the multiplicity m, to evaluate or to print.

    Attributes:
        c: exponent of the coefficient.
        m: exponent of the multiplicity.
    """

    c: float = 0
    m: float = 0

    def __call__(self, c: float, m: float) -> float:
        """Return the value for a coefficient and a multiplicity (dimensionless)."""
        return _product(max(self.c, 0), max(self.m, 0), c, m) / _product(max(-self.c, 0), max(-self.m, 0), c, m)

    @property
    def inverse(self) -> Powers:
        return Powers(-self.c, -self.m)

    def __str__(self) -> str:
        over, under = self._sides()
        return (over or "1") + (f"/{_bracketed(under)}" if under else "")

    def times(self, value: str) -> str:
        """Format the product with a named value: `lr x c`, `eps / (m c)`."""
        over, under = self._sides()
        return value + (f" x {over}" if over else "") + (f" / {_bracketed(under)}" if under else "")

    def _sides(self) -> tuple[str, str]:
        powers = (("m", self.m), ("c", self.c))
        over = (_power_text(name, power) for name, power in powers if power > 0)
        return " ".join(over), " ".join(_power_text(name, -power) for name, power in powers if power < 0)


def _product(c_power: float, m_power: float, c: float, m: float) -> float:
    """Compute m^m_power c^c_power, whole powers by multiplication, so factors that should cancel do."""
    result = 1.0
    for base, power in ((m, m_power), (c, c_power)):
        for _ in range(int(power)):
            result *= base
        result *= math.pow(base, power % 1)
    return result


def _power_text(name: str, power: float) -> str:
    return {1: name, 0.5: f"sqrt({name})"}.get(power, f"{name}^{power:g}")


def _bracketed(text: str) -> str:
    return f"({text})" if " " in text else text


NORM_WEIGHT = Powers(c=2, m=1)  # weight of a tensor's squared gradient norm in the global norm
L2_DECAY = NORM_WEIGHT.inverse  # factor of wd in g += wd p
PER_GRADIENT = Powers(c=-1, m=-1)  # factor of a term that is added to a gradient's magnitude


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerRule:
    """One optimizer: how its step and its state depend on the gradient, and what it is called elsewhere.

    Attributes:
        title: the name as its authors write it; users type `name`, the same in lower case.
        state: how each entry of its state depends on the gradient; step counts and master weights are implied.
        lr: factor of the learning rate.
        eps: factor of eps; None if there is no eps, or it only guards a division.
        decoupled: whether its weight decay is `p -= lr wd p` by default, rather than `g += wd p`.
        aliases: further names that users may type.
        twin: name of the same optimizer with the other default weight decay, if that has its own name.
        settings: default settings of a parameter group, which verification trains with if no file holds others.
        implied: state entries that exist only with certain settings, and those settings.
        initial: values of state entries before the first step, where these are not 0.
        marks: names of settings or state entries that together distinguish its groups from those of the rules above
            it in the table. Empty if nothing distinguishes them.
        lacks: names of settings that its groups never have.
        class_names: its class in each trainer's format; `torch` is a class that a training loop can import.
        exact: module and class that verification trains with if torch has no class or only an approximate one.
        matrices_only: whether it trains only matrices.
        shape_factor: returns the factor of its step for a matrix of a shape (rows, columns), given the group.
        caveats: sentences for the user about what is not exact.
        advice: findings about the transfer of its learning rate, with their source.
    """

    title: str
    state: Mapping[str, StateKind]
    lr: Powers
    eps: Powers | None = None
    decoupled: bool = False
    aliases: tuple[str, ...] = ()
    twin: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    initial: Mapping[str, float] = field(default_factory=dict)
    marks: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    class_names: Mapping[str, str] = field(default_factory=dict)
    exact: str | None = None
    matrices_only: bool = False
    shape_factor: Callable[[tuple[int, ...], Mapping[str, Any]], float] | None = None
    caveats: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.title.lower()

    def trains(self, shape: tuple[int, ...]) -> bool:
        """Tell whether the optimizer trains tensors of a shape."""
        return not self.matrices_only or len(shape) == 2

    def formulas(self, decoupled: bool) -> dict[str, Powers]:
        """Return the factor of each hyperparameter of this optimizer, for one kind of weight decay."""
        eps = {} if self.eps is None else {"eps": self.eps}
        return {"lr": self.lr, **eps, "weight_decay": self.lr.inverse if decoupled else L2_DECAY}

    def with_decay(self, decoupled: bool) -> OptimizerRule:
        """Return the rule of this optimizer or of its twin, whichever has this kind of weight decay by default."""
        return self if self.twin is None or decoupled == self.decoupled else OPTIMIZERS[self.twin]

    def matches(self, group: Mapping[str, Any], keys: Collection[str]) -> bool:
        """Tell whether a parameter group with these state keys can belong to this optimizer."""
        present = {*group, *keys}
        return (
            bool(self.marks)
            and present.issuperset(self.marks)
            and present.isdisjoint(self.lacks)
            and self.state.keys() >= _distinctive_keys(keys)
        )


# Entries that any optimizer's state may have; mixed precision adds the master weights.
_COMMON_STATE: Mapping[str, StateKind] = {
    "step": "same",
    "master_param": "weight",
    "master_weight": "weight",
    "fp32_param": "weight",
    "fp32": "weight",
}
_ADAM_STATE: Mapping[str, StateKind] = {
    "exp_avg": "linear",
    "exp_avg_sq": "quadratic",
    "max_exp_avg_sq": "quadratic",
}
_ADAM_SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
_AMSGRAD = {"max_exp_avg_sq": {"amsgrad": True}}


def muon_shape_factor(shape: tuple[int, ...], settings: Mapping[str, Any]) -> float:
    """Return the factor that torch.optim.Muon applies to the learning rate of a matrix, by its `adjust_lr_fn`."""
    rows, columns = shape
    if settings.get("adjust_lr_fn") == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


# Users see the rules in this order. Groups are compared with the last rule first, so a rule's marks only need to
# distinguish it from the rules above it.
_TABLE = (
    OptimizerRule(
        title="AdamW",
        aliases=("adamw_torch", "adamw_torch_fused"),  # names in the Trainer of transformers
        state=_ADAM_STATE,
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        decoupled=True,
        twin="adam",  # groups before torch 2.7 do not tell which; the Trainer and most recipes use AdamW
        settings={**_ADAM_SETTINGS, "amsgrad": False, "decoupled_weight_decay": True},
        implied=_AMSGRAD,
        marks=("betas", "eps"),
        class_names={"torch": "torch.optim.AdamW", "torchtitan": "AdamW", "bsh": "MuAdamW"},
    ),
    OptimizerRule(
        title="Adam",
        state=_ADAM_STATE,
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        twin="adamw",
        settings={**_ADAM_SETTINGS, "amsgrad": False, "decoupled_weight_decay": False},
        implied=_AMSGRAD,
        class_names={"torch": "torch.optim.Adam", "torchtitan": "Adam", "bsh": "MuAdam"},
    ),
    OptimizerRule(
        title="NAdam",
        state={"exp_avg": "linear", "exp_avg_sq": "quadratic", "mu_product": "same"},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings={**_ADAM_SETTINGS, "momentum_decay": 4e-3, "decoupled_weight_decay": False},
        initial={"mu_product": 1.0},
        marks=("momentum_decay",),
        class_names={"torch": "torch.optim.NAdam"},
    ),
    OptimizerRule(
        title="RAdam",
        state={"exp_avg": "linear", "exp_avg_sq": "quadratic"},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings={**_ADAM_SETTINGS, "decoupled_weight_decay": False},
        class_names={"torch": "torch.optim.RAdam"},
        caveats=("RAdam does not normalize its first five steps, so training is exact only from a state after them",),
    ),
    OptimizerRule(
        title="Adamax",
        state={"exp_avg": "linear", "exp_inf": "linear"},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings=_ADAM_SETTINGS,
        marks=("betas", "eps", "exp_inf"),
        class_names={"torch": "torch.optim.Adamax"},
    ),
    OptimizerRule(
        title="SGD",
        state={"momentum_buffer": "linear"},
        lr=Powers(c=2, m=1),
        settings={"lr": 1e-3, "momentum": 0.9, "dampening": 0, "weight_decay": 0.1, "nesterov": False},
        marks=("momentum", "dampening"),
        class_names={"torch": "torch.optim.SGD"},
    ),
    OptimizerRule(
        title="Lion",
        state={"exp_avg": "linear"},
        lr=Powers(c=1),
        decoupled=True,
        settings={"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1},
        marks=("betas",),
        lacks=("eps",),
        exact="mupscale_cli.optimizers.exact.Lion",
        advice=("the learning rate did not transfer with Lion (arXiv 2404.05728)",),
    ),
    OptimizerRule(
        title="Adagrad",
        state={"sum": "quadratic"},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings={"lr": 1e-2, "lr_decay": 0, "eps": 1e-10, "weight_decay": 0.1, "initial_accumulator_value": 0},
        marks=("lr_decay", "initial_accumulator_value"),
        class_names={"torch": "torch.optim.Adagrad"},
    ),
    OptimizerRule(
        title="RMSprop",
        # Its momentum averages gradients that are already normalized.
        state={"square_avg": "quadratic", "grad_avg": "linear", "momentum_buffer": "same"},
        lr=Powers(c=1),
        eps=PER_GRADIENT,
        settings={"lr": 1e-3, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.1, "momentum": 0, "centered": False},
        implied={"grad_avg": {"centered": True}, "momentum_buffer": {"momentum": 0.9}},
        marks=("alpha", "centered"),
        class_names={"torch": "torch.optim.RMSprop"},
    ),
    OptimizerRule(
        title="Muon",
        state={"momentum_buffer": "linear"},
        lr=Powers(c=1, m=0.5),  # orthogonalizing R(M) / (m c) gives R(orth(M)) / sqrt(m)
        decoupled=True,
        settings={"lr": 1e-3, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "ns_steps": 5},
        marks=("ns_steps",),
        class_names={"torch": "torch.optim.Muon"},
        exact="mupscale_cli.optimizers.exact.ExactMuon",
        matrices_only=True,
        shape_factor=muon_shape_factor,
        caveats=(
            "Muon's Newton-Schulz iteration is approximate and runs in bfloat16, so steps agree only to its accuracy",
        ),
    ),
)
OPTIMIZERS = {rule.name: rule for rule in _TABLE}


def optimizer_rule(name: str) -> OptimizerRule:
    """Find the rule of an optimizer by its name or an alias, in any case.

    Raises:
        PlanError: the optimizer is unknown.
    """
    lower = name.lower()
    rule = OPTIMIZERS.get(lower) or next((rule for rule in OPTIMIZERS.values() if lower in rule.aliases), None)
    if rule is None:
        raise PlanError(f"unknown optimizer `{name}`", hint=suggest(lower, OPTIMIZERS))
    return rule


def infer_optimizer(group: Mapping[str, Any], keys: Collection[str]) -> tuple[OptimizerRule, bool] | None:
    """Infer the optimizer of a parameter group, and whether its weight decay is decoupled.

    Args:
        group: the settings of the group.
        keys: the state keys of its parameters; may be empty before the first step.

    Returns:
        The rule and the kind of weight decay; None if no rule matches.
    """
    declared = group.get("decoupled_weight_decay")
    for rule in reversed(OPTIMIZERS.values()):
        if rule.matches(group, keys):
            decoupled = rule.decoupled if declared is None else bool(declared)
            return rule.with_decay(decoupled), decoupled
    return None


def state_kind(key: str, keys: Collection[str]) -> StateKind | None:
    """Return how a state entry depends on the gradient; None if the entry is unknown.

    Args:
        key: the key of the entry.
        keys: all keys of the parameter's state, since optimizers use the same key for different things.
    """
    if key in _COMMON_STATE:
        return _COMMON_STATE[key]
    rule = _closest((rule for rule in OPTIMIZERS.values() if key in rule.state), keys)
    return None if rule is None else rule.state[key]


def initial_value(key: str) -> float:
    """Return the value of a state entry before the first step."""
    return next((rule.initial[key] for rule in OPTIMIZERS.values() if key in rule.initial), 0.0)


def default_settings(keys: Collection[str]) -> dict[str, Any]:
    """Return default settings for a state whose file has none, inferred from its keys; AdamW's for an empty state.

    Args:
        keys: the state keys of all parameters.
    """
    distinctive = _distinctive_keys(keys)
    rule = _closest(OPTIMIZERS.values(), distinctive) if distinctive else OPTIMIZERS["adamw"]
    assert rule is not None
    settings = dict(rule.settings)
    for key in distinctive:
        settings.update(rule.implied.get(key, {}))
    return settings


def _distinctive_keys(keys: Collection[str]) -> set[str]:
    """Return the keys that belong to the state of a certain optimizer, unlike those that any state may have."""
    return {key for key in keys if any(key in rule.state for rule in OPTIMIZERS.values())}


def _closest(rules: Iterable[OptimizerRule], keys: Collection[str]) -> OptimizerRule | None:
    """Return the rule whose state has the most of these keys and the fewest other required ones; the first of ties."""
    wanted = set(keys)

    def likeness(rule: OptimizerRule) -> tuple[int, int]:
        state_keys = rule.state.keys()
        return len(state_keys & wanted), -len(state_keys - wanted - rule.implied.keys())

    return max(rules, key=likeness, default=None)
