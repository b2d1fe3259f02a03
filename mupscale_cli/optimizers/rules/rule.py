"""What an `OptimizerRule` says about one optimizer. No torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mupscale_cli.optimizers.rules.powers import L2_DECAY, PER_GRADIENT, PER_SQUARE, Powers

# Settings with which implementations say whether weight decay is `p -= lr wd p`.
DECOUPLED = ("decoupled_weight_decay", "decouple", "weight_decouple")


@dataclass(frozen=True, slots=True)
class Entry:
    """What widening does to one entry of an optimizer's state.

    Attributes:
        powers: factor of the copies.
        is_weight: whether the entry is widened like the weight itself, so that shares add up exactly.
        dims: returns which dimensions of the parameter the entry has, given their number; None for all of them. A
            dimension may have the size 1 in place of a larger one.
    """

    powers: Powers
    is_weight: bool = False
    dims: Callable[[int], tuple[int, ...]] | None = None


LINEAR = Entry(PER_GRADIENT)  # in the gradient
QUADRATIC = Entry(PER_SQUARE)
SAME = Entry(Powers())
WEIGHT = Entry(Powers(c=1), is_weight=True)
STEP = Entry(Powers(c=1))  # as long as a step of the parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerRule:
    """One optimizer: how its step and its state depend on the gradient, and what it is called elsewhere.

    Attributes:
        title: the name as its authors write it; users type `name`, the same in lower case.
        state: what widening does to each entry of its state; step counts and master weights are implied.
        lr: factor of the learning rate.
        has_rate: whether its groups have a learning rate; it may compute its own.
        eps: factor of eps, or of the first of a pair; None if there is no eps, or it only guards a division.
        decoupled: whether its weight decay is `p -= lr wd p` by default, rather than `g += wd p`.
        decay: factor of its weight decay, if that is neither of the two.
        scaled: factors of further settings of its groups; several for the numbers of a pair.
        variant: returns the fields that differ for a group's settings.
        aliases: further names that users may type.
        twin: name of the same optimizer with the other default weight decay, if that has its own name.
        settings: default settings of a parameter group, which verification trains with if no file holds others.
        implied: state entries that exist only with certain settings or for certain parameters, and those settings.
        initial: values of state entries before the first step, where these are not 0.
        marks: sets of names of settings and state entries; a group that has all names of one of them is this
            optimizer's, unless another rule's set contains these and more. Empty if nothing distinguishes its groups.
        lacks: names of settings and entries that its groups never have.
        double: an optimizer with the same state and another weight decay, whose groups lack the names in `alone`.
        alone: names of settings; groups of the optimizer have at least one, and those of its double have none.
        class_names: its class in each trainer's format; `torch` is a class that a training loop can import.
        exact: module and class that verification trains with if torch has no class or only an approximate one.
        matrices_only: whether it trains only matrices.
        shape_factor: returns the factor of its step for a matrix of a shape (rows, columns), given the group.
        caveats: sentences for the user about what is not exact.
        note: what the plan and the summary say about the written state, if it needs saying.
        advice: findings about the transfer of its learning rate, with their source.
    """

    title: str
    state: Mapping[str, Entry]
    lr: Powers
    has_rate: bool = True
    eps: Powers | None = None
    decoupled: bool = False
    decay: Powers | None = None
    scaled: Mapping[str, Powers | tuple[Powers, ...]] = field(default_factory=dict)
    variant: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    aliases: tuple[str, ...] = ()
    twin: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    implied: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    initial: Mapping[str, float] = field(default_factory=dict)
    marks: tuple[frozenset[str], ...] = ()
    lacks: frozenset[str] = frozenset()
    double: str = ""
    alone: frozenset[str] = frozenset()
    class_names: Mapping[str, str] = field(default_factory=dict)
    exact: str | None = None
    matrices_only: bool = False
    shape_factor: Callable[[tuple[int, ...], Mapping[str, Any]], float] | None = None
    caveats: tuple[str, ...] = ()
    note: str = ""
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
        decay = self.decay or (self.lr.inverse if decoupled else L2_DECAY)
        return {"lr": self.lr, **eps, **({"weight_decay": decay} if "weight_decay" in self.settings else {})}

    def with_settings(self, settings: Mapping[str, Any]) -> OptimizerRule:
        """Return the rule as it is with a group's settings."""
        return self if self.variant is None else replace(self, **self.variant(settings))

    def holds(self, keys: Collection[str]) -> bool:
        """Tell whether the state of some parameters can be this optimizer's: none is foreign and none is missing.

        Args:
            keys: the state keys that belong to certain optimizers; may be empty before the first step.
        """
        return not keys or (self.state.keys() >= set(keys) and {*keys, *self.implied} >= self.state.keys())
