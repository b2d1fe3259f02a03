"""Which optimizer a state belongs to: settings of groups and keys of entries decide it together. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.rules.rule import DECOUPLED, OptimizerRule
from mupscale_cli.optimizers.rules.table import OPTIMIZERS, REFUSED, optimizer_rule
from mupscale_cli.text import listed

# Settings that say how an optimizer averages gradients: each implementation of one has them in its groups.
_AVERAGES = frozenset({"betas", "momentum", "alpha", "rho", "etas"})
_NAME_IT = "name it with `--optimizer-kind NAME`, or omit the state with `--optimizer none`"


@dataclass(frozen=True)
class Kind:
    """The optimizer of some parameters.

    Attributes:
        rule: its rule, as it is with the settings of their group.
        decoupled: whether its weight decay is `p -= lr wd p`.
    """

    rule: OptimizerRule
    decoupled: bool


@dataclass(frozen=True)
class Kinds:
    """The optimizers of a state.

    Attributes:
        groups: the optimizer of each group.
        parameters: the optimizer of each parameter that has state or is in a group.
    """

    groups: tuple[Kind, ...]
    parameters: Mapping[str, Kind]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the optimizers, each once."""
        return tuple(dict.fromkeys(kind.rule.name for kind in (*self.groups, *self.parameters.values())))

    @property
    def rules(self) -> dict[str, OptimizerRule]:
        """The rule of each parameter."""
        return {name: kind.rule for name, kind in self.parameters.items()}


def identify(settings: Mapping[str, Any], keys: Collection[str], named: Sequence[str] = ()) -> Kind:
    """Tell which optimizer a group of parameters belongs to.

    Args:
        settings: the settings of the group; empty if the state has none.
        keys: the state keys of its parameters; may be empty before the first step.
        named: optimizers that these are; empty to let settings and keys decide.

    Raises:
        PlanError: no optimizer or several have such settings and keys, or the optimizer cannot be carried over.
    """
    insisted = [optimizer_rule(name) for name in named]
    present = {*settings, *keys}
    require_carried(present)
    known = distinctive_keys(keys)
    able = [rule for rule in OPTIMIZERS.values() if rule.holds(known) and _fits(rule, settings)]
    told = _most_specific(able, present)
    found = told or (able if named or known else [])
    if named:  # groups with settings of one optimizer are not another's, unless that one's tell nothing
        is_told = any(not rule.lacks for rule in told)  # what is absent may have been left out
        found = [
            rule
            for rule in insisted
            if rule in found or (rule in able and (not is_told if rule.marks else _allows(told, rule, present)))
        ]
    declared = next((settings[key] for key in DECOUPLED if key in settings), None)
    if declared is not None:  # Adam and AdamW differ in nothing else
        found, told = (
            [rule for rule in rules if rule.twin is None or rule.decoupled == bool(declared)] for rules in (found, told)
        )
    elif settings and not settings.get("weight_decay"):
        found = [rule for rule in found if rule.decoupled or OPTIMIZERS.get(rule.twin or "") not in found]
    if not found:
        raise _unfit(named, settings, keys, told) if named else _unknown(settings, keys)
    if len(found) > 1:
        raise _ambiguous(found, settings)
    rule = found[0].with_settings(settings)
    if settings:
        _check_settings(rule, settings)
    if not named:
        _require_certain(rule, settings)
    return Kind(rule, rule.decoupled if declared is None else bool(declared))


def require_carried(present: Collection[str]) -> None:
    """Check that settings and state keys are not those of an optimizer that no rule can carry over.

    Raises:
        PlanError: they are.
    """
    refusal = next((each for each in REFUSED if set(present) >= each.marks), None)
    if refusal is not None:
        raise PlanError(
            f"the optimizer is {refusal.title}, which cannot be carried over: {refusal.reason}",
            hint="omit the state with `--optimizer none`",
        )


def identify_all(
    groups: Iterable[tuple[Mapping[str, Any], Sequence[str]]],
    states: Mapping[str, Mapping[str, Any]],
    named: Sequence[str] = (),
) -> Kinds:
    """Tell which optimizer each group and each parameter of a state belongs to.

    Args:
        groups: settings and parameter names of each group.
        states: the state entries of each parameter.
        named: optimizers that these are; empty to let settings and keys decide.

    Raises:
        PlanError: it is not certain for a group, or for a parameter of a state without groups.
    """
    keys = {name: frozenset(entries) for name, entries in states.items()}
    groups = list(groups)
    kinds = tuple(
        identify(settings, frozenset().union(*(keys.get(name, ()) for name in names)), named)
        for settings, names in groups
    )
    grouped = {name: kind for kind, (_, names) in zip(kinds, groups, strict=True) for name in names}
    ungrouped = {name: found for name, found in keys.items() if name not in grouped}
    by_keys = {found: identify({}, found, named) for found in dict.fromkeys(ungrouped.values())}
    return Kinds(kinds, {**grouped, **{name: by_keys[found] for name, found in ungrouped.items()}})


def named_after(optimizer: object) -> tuple[str, ...]:
    """Return the optimizers that the class of a live one is named after, with either weight decay; none if unknown."""
    name = type(optimizer).__name__
    rules = [
        rule
        for rule in OPTIMIZERS.values()
        if rule.name == name.lower() or rule.class_names.get("torch", "").endswith(f".{name}")
    ]
    return tuple(dict.fromkeys(each for rule in rules for each in (rule.name, rule.twin) if each))


def distinctive_keys(keys: Collection[str]) -> set[str]:
    """Return the keys that belong to the state of a certain optimizer, unlike those that any state may have."""
    return {key for key in keys if any(key in rule.state for rule in OPTIMIZERS.values())}


def default_settings(rule: OptimizerRule, keys: Iterable[str]) -> dict[str, Any]:
    """Return default settings for a state whose file has none.

    Args:
        rule: the optimizer.
        keys: the state keys of all parameters, some of which exist only with certain settings.
    """
    settings = dict(rule.settings)
    for key in keys:
        settings.update(rule.implied.get(key, {}))
    return settings


def _fits(rule: OptimizerRule, settings: Mapping[str, Any]) -> bool:
    """Tell whether a group can be an optimizer's, by how it averages gradients; one without settings can be any's.

    A group may also have the settings of others: programs that mix optimizers give each group the defaults of all.
    """
    if not settings or not rule.lacks.isdisjoint(settings):
        return not settings
    optional = {name for implied in rule.implied.values() for name in implied}
    own, present = _AVERAGES & rule.settings.keys(), _AVERAGES & settings.keys()
    return own - optional <= present and (bool(own & present) or not present)


def _most_specific(rules: Iterable[OptimizerRule], present: Collection[str]) -> list[OptimizerRule]:
    """Return the rules that have a mark among these names which no other matching mark contains."""
    marks = {
        rule.name: [mark for mark in rule.marks if mark <= set(present)]
        for rule in rules
        if rule.lacks.isdisjoint(present)
    }
    matched = [mark for found in marks.values() for mark in found]
    return [
        OPTIMIZERS[name]
        for name, found in marks.items()
        if any(not any(mark < other for other in matched) for mark in found)
    ]


def _allows(told: Iterable[OptimizerRule], rule: OptimizerRule, present: Collection[str]) -> bool:
    """Tell whether marks in a group, if there are any, can be those of an optimizer that has no marks of its own."""
    own = {*rule.settings, *rule.state}
    marks = [mark for other in told for mark in other.marks if mark <= set(present)]
    return not marks or any(mark <= own for mark in marks)


def _require_certain(rule: OptimizerRule, settings: Mapping[str, Any]) -> None:
    """Check that a group that decays is not that of a double, whose groups lack some settings.

    Raises:
        PlanError: it may be.
    """
    if rule.double and settings.get("weight_decay") and rule.alone.isdisjoint(settings):
        raise PlanError(
            f"the optimizer state may be that of {rule.name} or of {rule.double}, whose weight decay is another one: "
            f"its groups have no setting {listed(sorted(rule.alone))}",
            hint=f"if it is {rule.title}'s, name it with `--optimizer-kind {rule.name}`; otherwise omit the state with "
            "`--optimizer none`",
        )


def _check_settings(rule: OptimizerRule, settings: Mapping[str, Any]) -> None:
    """Check that a group has every setting that widening multiplies, and none that changes the formulas.

    Raises:
        PlanError: a setting is missing, so an object would use it unchanged, or weights decay without the rate.
    """
    needed = {*(rule.scaled.keys() & rule.settings.keys()), *([] if rule.eps is None else ["eps"])}
    if missing := needed - settings.keys():
        raise PlanError(
            f"the optimizer has the state of {rule.title}, but its groups lack {listed(sorted(missing))}, which "
            "widening multiplies",
            hint="omit the state with `--optimizer none`",
        )
    if settings.get("fixed_decay") and settings.get("weight_decay"):
        raise PlanError(
            "its weight decay is independent of the learning rate (`fixed_decay`), which no rule here describes",
            hint="omit the state with `--optimizer none`",
        )


def _held(settings: Mapping[str, Any], keys: Collection[str]) -> str:
    state, given = (
        f"the {what} {listed(sorted(map(str, names)))}" if names else f"no {what}"
        for what, names in (("state", keys), ("settings", settings))
    )
    return f"parameters with {state} and {given}"


def _unknown(settings: Mapping[str, Any], keys: Collection[str]) -> PlanError:
    return PlanError(f"no known optimizer has {_held(settings, keys)}", hint="omit the state with `--optimizer none`")


def _unfit(
    named: Sequence[str], settings: Mapping[str, Any], keys: Collection[str], told: Sequence[OptimizerRule]
) -> PlanError:
    """Return the error for insisted optimizers that a group is not of, with what tells so."""
    likely = f", which are those of {' or '.join(rule.name for rule in told)}" if told else ""
    why = next((f" (`{key}` is {settings[key]})" for key in DECOUPLED if key in settings), "")
    return PlanError(
        f"{listed(named)} does not fit {_held(settings, keys)}{likely}{why}",
        hint="name every optimizer of the file with `--optimizer-kind NAME`, repeated; or leave the option out to let "
        "settings and keys tell",
    )


def _ambiguous(found: Sequence[OptimizerRule], settings: Mapping[str, Any]) -> PlanError:
    candidates = " or ".join(rule.name for rule in found)
    if len(found) == 2 and found[0].twin == found[1].name:
        why = f"its groups do not say whether the weight decay of {settings.get('weight_decay')} is decoupled"
    else:
        why = "its settings and state keys fit each of them" if settings else "a state without groups does not tell"
    return PlanError(f"the optimizer state may be that of {candidates}: {why}", hint=_NAME_IT)
