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

_SAVE_NAMES = "save the state of an optimizer created with `model.named_parameters()`, whose groups hold the names"


def names_by_order(
    config: Mapping[str, Any] | None,
    groups: Groups,
    states: Mapping[Any, Any],
    weights: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> dict[int, str]:
    """Name parameters by the order in which `AdamW(model.parameters())`, or a library's own trainer, numbers them.

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
    if (named := _names_by_weights(groups, states, weights)) is not None:
        return named
    library, package, model = _empty_model(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    orders: Sequence[Sequence[str]] = [list(shapes)]
    if len(groups) == 2 and library.groups is not None:
        orders = library.groups(package, model)
    counts = [len(members) for _, members in groups]
    if len(groups) != len(orders) or any(count > len(order) for count, order in zip(counts, orders, strict=True)):
        raise CheckpointError(
            f"the optimizer has unnamed parameters in {counted(len(groups), 'group')} of {_numbers(counts)}, but the "
            f"trainer of {library.name} makes {_numbers(map(len, orders))}",
            hint=_SAVE_NAMES,
        )
    names: dict[int, str] = {}
    for (_, members), order in zip(groups, orders, strict=True):
        numbers: list[Any] = list(members)
        trained = _trained([_shape(states.get(number, {})) for number in numbers], order, shapes)
        if trained is None:
            raise CheckpointError(
                f"the optimizer has {_numbers(counts)} of the model's {_numbers(map(len, orders))} parameters, so the "
                "others were frozen, and the shapes do not tell which ones were trained",
                hint=f"widen without the state: `--optimizer none`; or {_SAVE_NAMES}",
            )
        names |= zip(numbers, trained, strict=True)
    for number, entries in states.items():
        if number not in names:
            continue  # parse_tree reports it
        for key, value in entries.items():
            if isinstance(value, torch.Tensor) and value.dim() and tuple(value.shape) != shapes[names[number]]:
                raise CheckpointError(
                    f"the optimizer's parameter {number} should be `{names[number]}` with the shape "
                    f"{shapes[names[number]]}, but its `{key}` has the shape {tuple(value.shape)}",
                    hint=_SAVE_NAMES,
                )
    return names


def _names_by_weights(
    groups: Groups, states: Mapping[Any, Any], weights: Mapping[str, tuple[int, ...]]
) -> dict[int, str] | None:
    """Name parameters by the weights in the same file, in one group, or in two by the number of dimensions.

    None if the counts or the shapes do not fit, or no shape tells which of the two groups holds the matrices.
    """
    matrices = [name for name, shape in weights.items() if len(shape) > 1]
    vectors = [name for name, shape in weights.items() if len(shape) < 2]
    for orders in ([list(weights)], [matrices, vectors], [vectors, matrices]):
        if [len(members) for _, members in groups] != [len(order) for order in orders]:
            continue
        numbered: list[Any] = [number for _, members in groups for number in members]
        names = dict(zip(numbered, (name for order in orders for name in order), strict=True))
        shapes = {number: _shape(states.get(number, {})) for number in numbered}
        if any(shapes.values()) and all(shape in (None, weights[names[number]]) for number, shape in shapes.items()):
            return names
    return None


def _trained(
    found: Sequence[tuple[int, ...] | None], order: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> Sequence[str] | None:
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


def _in_order(
    found: Sequence[tuple[int, ...] | None], order: Sequence[str], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Return the first names in order that have these shapes; fewer if there are not enough."""
    names = iter(order)
    fitting = (next((name for name in names if shape in (None, shapes[name])), None) for shape in found)
    return [name for name in fitting if name is not None]


def _shape(entries: Mapping[str, Any]) -> tuple[int, ...] | None:
    tensors = (value for value in entries.values() if isinstance(value, torch.Tensor) and value.dim())
    return next((tuple(tensor.shape) for tensor in tensors), None)


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
            hint=f"`{library.install}`, or {_SAVE_NAMES}",
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
