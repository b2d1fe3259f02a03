"""Read and render an optimizer's state dict in any form as states and groups by parameter name.

There are three forms: that of torch.optim (states by number, groups that list the numbers), the same with names instead
of numbers (torch.distributed.checkpoint), and the flat form of
`get_optimizer_state_dict(flatten_optimizer_state_dict=True)`, with keys like `state.NAME.exp_avg`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mupscale_cli.checkpoints.containers.places import Place, value_at
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.groups import WideGroup
from mupscale_cli.optimizers.identity import Kinds, identify_all, require_carried

Form = Literal["numbers", "names", "flat"]
Groups = Sequence[tuple[Mapping[str, Any], Sequence[str]]]
_STATE, _GROUPS, _PARAMS, _NAMES = "state", "param_groups", "params", "param_names"


@dataclass(frozen=True)
class OptimizerTree:
    """An optimizer's states and groups by parameter name.

    Attributes:
        form: the form of the state dict that they come from.
        states: the state entries of every parameter that has any.
        groups: settings and parameter names of each group; the flat form has one group per parameter.
        numbers: the number of each name, in the form with numbers.
        kinds: the optimizers that the user says these are; empty if settings and keys decide.
    """

    form: Form
    states: Mapping[str, Mapping[str, Any]]
    groups: Groups
    numbers: Mapping[str, int]
    kinds: tuple[str, ...] = ()

    def identified(self) -> Kinds:
        """Tell which optimizer each group and each parameter belongs to.

        Raises:
            PlanError: it is not certain.
        """
        return identify_all(self.groups, self.states, self.kinds)

    def renamed(self, name_of: Callable[[str], str]) -> OptimizerTree:
        """Return the same content under other names of parameters."""
        return replace(
            self,
            states={name_of(name): entries for name, entries in self.states.items()},
            groups=[(settings, [name_of(name) for name in names]) for settings, names in self.groups],
            numbers={name_of(name): number for name, number in self.numbers.items()},
        )


def is_optimizer(content: Any) -> bool:
    """Tell whether a value is an optimizer's state dict in any of the forms."""
    if not isinstance(content, Mapping):
        return False
    if _GROUPS in content:  # a distributed checkpoint drops an empty `state`
        return isinstance(content.get(_STATE, {}), Mapping) and isinstance(content[_GROUPS], list)
    return any(isinstance(key, str) and key.startswith((f"{_STATE}.", f"{_GROUPS}.")) for key in content)


def optimizer_places(content: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the place of every optimizer's state dict, or list of them, below a place."""
    if is_optimizer(content) or (isinstance(content, (list, tuple)) and any(map(is_optimizer, content))):
        yield place
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from optimizer_places(value, (*place, key))


def optimizers_at(content: Any, place: Place) -> tuple[Place, ...]:
    """Return the places of the optimizers at a place: its own, or those in the list or mapping that is there."""
    found = value_at(content, place)
    if is_optimizer(found):
        return (place,)
    keys = found if isinstance(found, Mapping) else range(len(found)) if isinstance(found, (list, tuple)) else ()
    return tuple((*place, key) for key in keys if is_optimizer(found[key]))


def refuse_for_good(content: Any) -> None:
    """Refuse content with the state of an optimizer that cannot be carried over, before what could be mended.

    Raises:
        PlanError: it has such a state.
    """
    for place in optimizer_places(content):
        for each in optimizers_at(content, place):
            for group in value_at(content, each).get(_GROUPS, ()):
                require_carried(group)


def joined(trees: Sequence[OptimizerTree]) -> OptimizerTree:
    """Return the states and groups of several optimizers of one model, in their order, as those of one.

    Raises:
        CheckpointError: two of them have the same parameter.
    """
    if len(trees) == 1:
        return trees[0]
    owner: dict[str, int] = {}
    for index, tree in enumerate(trees):
        for name in {*tree.states, *(name for _, names in tree.groups for name in names)}:
            if owner.setdefault(name, index) != index:
                raise CheckpointError(
                    f"the optimizers {owner[name]} and {index} both have the parameter `{name}`",
                    hint="name the one to widen with `--key`, and save the file without the other; or "
                    "`--optimizer none`",
                )
    states = {name: entries for tree in trees for name, entries in tree.states.items()}
    return OptimizerTree("names", states, [group for tree in trees for group in tree.groups], {})


def parse_tree(
    content: Mapping[Any, Any], names_of: Callable[[Groups, Mapping[Any, Any]], Mapping[int, str]]
) -> OptimizerTree:
    """Read a state dict.

    Args:
        content: the state dict, in any of the forms.
        names_of: names the numbered parameters of groups that have no names.

    Raises:
        CheckpointError: the state dict is malformed or contradicts itself.
    """
    if _GROUPS not in content:
        return _parse_flat(content)
    states = content.get(_STATE, {})
    _check_forms(states, content[_GROUPS])
    raw = [
        ({key: value for key, value in group.items() if key not in (_PARAMS, _NAMES)}, list(group[_PARAMS]))
        for group in content[_GROUPS]
    ]
    members = [member for _, group in raw for member in group]
    if not all(type(member) is int for member in members):
        named = {str(name): entries for name, entries in states.items()}
        return OptimizerTree("names", named, [(s, [str(m) for m in group]) for s, group in raw], {})
    group_names = [group.get(_NAMES) for group in content[_GROUPS]]
    if all(group_names):
        for (_, group), listed in zip(raw, group_names, strict=True):
            if not isinstance(listed, (list, tuple)) or len(listed) != len(group):
                raise CheckpointError(
                    f"a group of the optimizer has {len(group)} parameters, but `{_NAMES}` does not name each of them"
                )
        names = {
            n: str(name)
            for (_, group), listed in zip(raw, group_names, strict=True)
            for n, name in zip(group, listed, strict=True)
        }
    else:
        names = dict(names_of(raw, states))
    ungrouped = [number for number in states if number not in names]
    if ungrouped:
        raise CheckpointError(f"the optimizer has state for parameter number {ungrouped[0]}, which is in no group")
    return OptimizerTree(
        "numbers",
        {names[number]: entries for number, entries in states.items()},
        [(settings, [names[number] for number in group]) for settings, group in raw],
        {name: number for number, name in names.items()},
    )


def _check_forms(states: Mapping[Any, Any], groups: Sequence[Any]) -> None:
    for number, entries in states.items():
        if not isinstance(entries, Mapping):
            raise CheckpointError(f"the optimizer state of parameter {number} is not a mapping")
    for group in groups:
        members = group.get(_PARAMS) if isinstance(group, Mapping) else None
        if not isinstance(members, (list, tuple)) or not all(isinstance(member, (int, str)) for member in members):
            raise CheckpointError("a group of the optimizer does not list its parameters by number or name")


def _parse_flat(content: Mapping[Any, Any]) -> OptimizerTree:
    states: dict[str, dict[str, Any]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        section, _, rest = str(key).partition(".")
        name, _, entry = rest.rpartition(".")
        into = {_STATE: states, _GROUPS: settings}.get(section)
        if into is None or not name:
            raise CheckpointError(f"`{key}` is not an optimizer's state or group")
        into.setdefault(name, {})[entry] = value
    return OptimizerTree("flat", states, [(values, [name]) for name, values in settings.items()], {})


def render_tree(
    tree: OptimizerTree, states: Mapping[str, Mapping[str, Any]], groups: Sequence[WideGroup]
) -> dict[Any, Any]:
    """Render the widened state dict in the form of the narrow one.

    Args:
        tree: the narrow state dict.
        states: the state entries of every wide parameter.
        groups: its groups.
    """
    if tree.form == "flat":
        flat = {f"{_STATE}.{name}.{key}": value for name, entries in states.items() for key, value in entries.items()}
        for group in groups:
            flat |= {f"{_GROUPS}.{name}.{k}": v for name in group.names for k, v in group.settings.items()}
        return flat
    members = [name for group in groups for name in group.names]
    labels: Mapping[str, Any] = {name: name for name in members}
    if tree.form == "numbers":
        labels = {name: number for number, name in enumerate(members)}
    return {
        _STATE: {labels[name]: dict(states[name]) for name in members if name in states},
        _GROUPS: [
            {
                **group.settings,
                _NAMES: list(group.names),
                _PARAMS: [labels[name] for name in group.names],
            }
            for group in groups
        ],
    }
