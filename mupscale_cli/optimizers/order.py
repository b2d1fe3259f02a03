"""Name the numbered parameters of an optimizer whose groups have no names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mupscale_cli.errors import CheckpointError
from mupscale_cli.libraries import Library, library_of
from mupscale_cli.optimizers.tree import Groups
from mupscale_cli.text import counted

_SAVE_NAMES = "save the state of an optimizer created with `model.named_parameters()`, whose groups hold the names"


def names_by_order(config: Mapping[str, Any] | None, groups: Groups, states: Mapping[Any, Any]) -> dict[int, str]:
    """Name parameters by the order in which `AdamW(model.parameters())`, or a library's own trainer, numbers them.

    Args:
        config: config.json, from which its library builds the model without data.
        groups: the settings and parameter numbers of each group.
        states: the state of each number, whose shapes are checked against the model's.

    Returns:
        The name of each number.

    Raises:
        CheckpointError: the model cannot be built, or its parameters do not fit the optimizer's.
    """
    numbers: list[Any] = [number for _, members in groups for number in members]
    library, package, model = _empty_model(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    order = list(shapes)
    if len(groups) == 2 and library.groups is not None:
        first, second = library.groups(package, model)
        order = [*first, *second]
        if len(first) != len(groups[0][1]):
            raise CheckpointError(
                f"the optimizer's first group has {len(groups[0][1])} parameters, "
                f"but the trainer of {library.name} puts {len(first)} there",
                hint=_SAVE_NAMES,
            )
    if len(numbers) != len(order) or len(groups) > 2:
        raise CheckpointError(
            f"the optimizer has {len(numbers)} unnamed parameters in {counted(len(groups), 'group')}, "
            f"but the model has {len(order)}",
            hint=_SAVE_NAMES,
        )
    names = dict(zip(numbers, order, strict=True))
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
