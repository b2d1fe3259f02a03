"""The table of optimizers: one `OptimizerRule` per optimizer, which the rest of the program reads. No torch.

All formulas follow from one fact (page `theory`): the wide network as a function of W' = c R(W) is the narrow network
as a function of W, and the m copies of an element are symmetric, so each has the gradient g' = g / (m c). A wide step
must be c R(narrow step).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.rules import adam, factored, matrices, plain
from mupscale_cli.optimizers.rules.rule import SAME, WEIGHT, Entry, OptimizerRule
from mupscale_cli.text import suggest

OPTIMIZERS: dict[str, OptimizerRule] = {
    rule.name: rule for rule in (*adam.RULES, *factored.RULES, *plain.RULES, *matrices.RULES)
}
# Entries that any optimizer's state may have; mixed precision adds the master weights.
COMMON_STATE: Mapping[str, Entry] = {
    "step": SAME,
    "master_param": WEIGHT,
    "master_weight": WEIGHT,
    "fp32_param": WEIGHT,
    "fp32": WEIGHT,
}


@dataclass(frozen=True)
class Refusal:
    """An optimizer whose wide step cannot be the widened narrow one.

    Attributes:
        title: its name.
        marks: names of settings and state entries that its groups have.
        reason: why, as the end of a sentence.
    """

    title: str
    marks: frozenset[str]
    reason: str


_LARS = "its step is as long as the weights, unlike that of SGD, whose groups it has, and it has no rule"
REFUSED = (
    Refusal(
        "Adadelta",
        frozenset({"rho", "acc_delta"}),
        "its eps is added to squared gradients and to squared steps, which scale differently, so no single eps is "
        "right for both",
    ),
    Refusal(
        "APOLLO",
        frozenset({"rank", "scale_type"}),
        "its moments are those of random projections of the gradient, and the wide model draws other projections",
    ),
    Refusal(
        "GaLore",
        frozenset({"rank", "update_proj_gap"}),
        "its moments belong to a projection that the wide model computes again with other signs, and that is stored "
        "as an object, which would run code when it is read",
    ),
    Refusal(
        "Kron of pytorch_optimizer",
        frozenset({"precondition_lr", "pre_conditioner_update_probability"}),
        "its preconditioners are factors that random vectors update, and the wide model draws others",
    ),
    Refusal("LARS", frozenset({"momentum", "trust_coefficient"}), _LARS),
    Refusal("LARS of timm", frozenset({"momentum", "trust_coeff"}), _LARS),
    Refusal(
        "RMSpropTF of timm",
        frozenset({"alpha", "lr_in_momentum"}),
        "it adds eps inside the root and averages steps, unlike RMSprop, whose groups it has, and it has no rule",
    ),
    Refusal(
        "SGDW of timm",
        frozenset({"dampening", "caution"}),
        "its weight decay is `p -= lr wd p`, unlike that of SGD, whose groups it has, and it has no rule",
    ),
    Refusal(
        "Shampoo of torch_optimizer",
        frozenset({"epsilon", "update_freq"}),
        "its second sum is of gradients that the first has changed, and both start from a multiple of the identity, "
        "whose copies have no inverse root (page `theory`)",
    ),
    Refusal(
        "Shampoo of pytorch_optimizer",
        frozenset({"pre_cond_0"}),
        "its sums start from a multiple of the identity, whose copies have no inverse root (page `theory`)",
    ),
    Refusal(
        "SOAP",
        frozenset({"shampoo_beta", "precondition_frequency"}),
        "its moments are stored in a basis of eigenvectors that the wide model computes again, so nothing maps them",
    ),
)


def kinds_text(names: Iterable[str]) -> str:
    """Format the names of a state's optimizers, with what there is to say about the written state."""
    rules = [OPTIMIZERS[name] for name in names]
    return "; ".join((" and ".join(rule.name for rule in rules), *(rule.note for rule in rules if rule.note)))


def optimizer_rule(name: str) -> OptimizerRule:
    """Find the rule of an optimizer by its name or an alias, in any case.

    Raises:
        PlanError: the optimizer is unknown, or cannot be carried over.
    """
    lower = name.lower()
    rule = OPTIMIZERS.get(lower) or next((rule for rule in OPTIMIZERS.values() if lower in rule.aliases), None)
    if rule is None:
        refusal = next((each for each in REFUSED if each.title.lower() == lower), None)
        if refusal is not None:
            raise PlanError(f"{refusal.title} cannot be carried over: {refusal.reason}")
        raise PlanError(f"unknown optimizer `{name}`", hint=suggest(lower, OPTIMIZERS))
    return rule


def initial_value(key: str) -> float:
    """Return the value of a state entry before the first step."""
    return next((rule.initial[key] for rule in OPTIMIZERS.values() if key in rule.initial), 0.0)
