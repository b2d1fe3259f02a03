"""Name the numbered parameters of an optimizer whose groups have no names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from mupscale_cli.checkpoints.libraries import Library, library_of
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.tree import Groups
from mupscale_cli.text import counted

Shape = tuple[int, ...]
_SAVE_NAMES = "save the state of an optimizer created with `model.named_parameters()`, whose groups hold the names"


def names_by_order(
    config: Mapping[str, Any] | None,
    groups: Groups,
    states: Mapping[Any, Any],
    weights: Mapping[str, Shape] = MappingProxyType({}),
) -> dict[Any, str]:
    """Name parameters by the order in which `AdamW(model.parameters())`, or a library's own trainer, numbers them.

    Groups of another kind, such as Muon's matrices beside AdamW's other parameters, are named by the shapes of their
    states, if these tell.

    Args:
        config: config.json, from which its library builds the model without data.
        groups: the settings and parameter numbers of each group.
        states: the state of each number, whose shapes are checked against the model's.
        weights: the shapes of the weights in the same file, in the order of `model.parameters()`.

    Returns:
        The name of each number.

    Raises:
        CheckpointError: the model cannot be built, or its parameters do not fit the optimizer's.
    """
    found = {number: _shape(states.get(number, {})) for _, members in groups for number in members}
    named = _by_weights(groups, found, weights) or (_by_shape(groups, found, weights) if weights else None)
    if named is not None:
        return named
    library, package, model = _empty_model(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    orders: Sequence[Sequence[str]] = [list(shapes)]
    if len(groups) == 2 and library.groups is not None:
        orders = library.groups(package, model)
    try:
        return _by_order(groups, found, orders, shapes, library)
    except CheckpointError:
        names = _by_shape(groups, found, shapes)
        if names is None:
            raise
        return names


def _by_order(
    groups: Groups,
    found: Mapping[Any, Shape | None],
    orders: Sequence[Sequence[str]],
    shapes: Mapping[str, Shape],
    library: Library,
) -> dict[Any, str]:
    """Name the numbers of each group by the order of the library's trainer."""
    counts = [len(members) for _, members in groups]
    if len(groups) != len(orders) or any(count > len(order) for count, order in zip(counts, orders, strict=True)):
        raise CheckpointError(
            f"the optimizer has unnamed parameters in {counted(len(groups), 'group')} of {_numbers(counts)}, but the "
            f"trainer of {library.name} makes {_numbers(map(len, orders))}",
            hint=_SAVE_NAMES,
        )
    names: dict[Any, str] = {}
    for (_, members), order in zip(groups, orders, strict=True):
        trained = _trained([found[number] for number in members], order, shapes)
        if trained is None:
            raise CheckpointError(
                f"the optimizer has {_numbers(counts)} of the model's {_numbers(map(len, orders))} parameters, so the "
                "others were frozen, and the shapes do not tell which ones were trained",
                hint=f"widen without the state: `--optimizer none`; or {_SAVE_NAMES}",
            )
        names |= zip(members, trained, strict=True)
    for number, shape in found.items():
        if shape not in (None, shapes[names[number]]):
            raise CheckpointError(
                f"the optimizer's parameter {number} should be `{names[number]}` with the shape "
                f"{shapes[names[number]]}, but its state has the shape {shape}",
                hint=_SAVE_NAMES,
            )
    return names


def _by_weights(
    groups: Groups, found: Mapping[Any, Shape | None], weights: Mapping[str, Shape]
) -> dict[Any, str] | None:
    """Name parameters by the weights in the same file, in one group, or in two by the number of dimensions.

    None if the counts or the shapes do not fit, or no shape tells which of the two groups holds the matrices.
    """
    matrices = [name for name, shape in weights.items() if len(shape) > 1]
    vectors = [name for name, shape in weights.items() if len(shape) < 2]
    for orders in ([list(weights)], [matrices, vectors], [vectors, matrices]):
        if [len(members) for _, members in groups] != [len(order) for order in orders]:
            continue
        names = dict(zip(found, (name for order in orders for name in order), strict=True))
        if any(found.values()) and all(shape in (None, weights[names[number]]) for number, shape in found.items()):
            return names
    return None


def _by_shape(groups: Groups, found: Mapping[Any, Shape | None], shapes: Mapping[str, Shape]) -> dict[Any, str] | None:
    """Name numbers by the shapes of their states; None if these do not tell.

    They tell if one group has all of the model's parameters of a shape, and every group has its parameters in the
    model's order, or in that of their sizes, as Muon's own class sorts them.
    """
    names: dict[Any, str] = {}
    place = {name: number for number, name in enumerate(shapes)}
    for _, members in groups:
        by_shape: dict[Shape | None, list[Any]] = {}
        for number in members:
            by_shape.setdefault(found[number], []).append(number)
        for shape, numbers in by_shape.items():
            fitting = [name for name in shapes if shapes[name] == shape]
            if len(fitting) != len(numbers):
                return None
            names |= zip(numbers, fitting, strict=True)
        order = [names[number] for number in members]
        if order not in (
            sorted(order, key=place.__getitem__),
            sorted(sorted(order, key=place.__getitem__), key=shapes.__getitem__, reverse=True),
        ):
            return None
    return names


def _trained(found: Sequence[Shape | None], order: Sequence[str], shapes: Mapping[str, Shape]) -> Sequence[str] | None:
    """Return the parameters that an optimizer has, in order; None if the others were frozen and could be several.

    Args:
        found: the shape of each parameter's state, None if it has none.
        order: the names of all parameters in the optimizer's order.
        shapes: the shape of each name.
    """
    if len(found) == len(order):  # `names_by_order` compares the shapes
        return order
    first = _in_order(found, order, shapes)
    last = _in_order(found[::-1], order[::-1], shapes)[::-1]
    return first if len(first) == len(found) and first == last else None


def _in_order(found: Sequence[Shape | None], order: Sequence[str], shapes: Mapping[str, Shape]) -> list[str]:
    """Return the first names in order that have these shapes; fewer if there are not enough."""
    names = iter(order)
    fitting = (next((name for name in names if shape in (None, shapes[name])), None) for shape in found)
    return [name for name in fitting if name is not None]


def _shape(entries: Mapping[str, Any]) -> Shape | None:
    """Return the shape of the parameter that a state belongs to; None if there is no state.

    Entries that average over a dimension have the size 1 there.
    """
    tensors = [value for value in entries.values() if isinstance(value, torch.Tensor) and value.dim()]
    if (row := entries.get("exp_avg_sq_row")) is not None:  # Adafactor's averages lack the dimension
        return (*row.shape, entries["exp_avg_sq_col"].shape[-1])
    most = max((tensor.dim() for tensor in tensors), default=0)
    shapes = [tensor.shape for tensor in tensors if tensor.dim() == most]
    return tuple(max(sizes) for sizes in zip(*shapes, strict=True)) if shapes else None


def _numbers(counts: Iterable[int]) -> str:
    return " and ".join(map(str, counts))


def _empty_model(config: Mapping[str, Any] | None) -> tuple[Library, Any, torch.nn.Module]:
    """Build a checkpoint's model without data; return its library, the library's package and the model."""
    library = library_of(config)
    try:
        package = library.package()
    except ImportError as error:
        raise CheckpointError(
            f"the optimizer numbers its parameters, and their names are unknown without {library.name}",
            hint=f"{library.install}, or {_SAVE_NAMES}",
        ) from error
    try:
        with torch.device("meta"):
            return library, package, library.build(package, config or {})
    except Exception as error:
        raise CheckpointError(
            "the optimizer numbers its parameters, and their names are unknown because "
            f"{library.name} cannot build the model from its config: {error}",
            hint=_SAVE_NAMES,
        ) from error
