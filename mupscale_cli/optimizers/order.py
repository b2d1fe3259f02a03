"""Name the numbered parameters of an optimizer whose groups have no names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from mupscale_cli.checkpoints.config import architecture_of
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.tree import Groups
from mupscale_cli.text import counted

_SAVE_NAMES = "save the state of an optimizer created with `model.named_parameters()`, whose groups hold the names"


def names_by_order(config: Mapping[str, Any] | None, groups: Groups, states: Mapping[Any, Any]) -> dict[int, str]:
    """Name parameters by the order in which the Trainer, or `AdamW(model.parameters())`, numbers them.

    Args:
        config: config.json, from which transformers builds the model without data.
        groups: the settings and parameter numbers of each group.
        states: the state of each number, whose shapes are checked against the model's.

    Returns:
        The name of each number.

    Raises:
        CheckpointError: the model cannot be built, or its parameters do not fit the optimizer's.
    """
    numbers: list[Any] = [number for _, members in groups for number in members]
    model = _empty_model(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    order = list(shapes)
    if len(groups) == 2:
        transformers: Any = importlib.import_module("transformers")
        decayed_names = set(transformers.Trainer.get_decay_parameter_names(None, model))
        decayed = [name for name in order if name in decayed_names]
        order = decayed + [name for name in order if name not in decayed_names]
        if len(decayed) != len(groups[0][1]):
            raise CheckpointError(
                f"the optimizer's first group has {len(groups[0][1])} parameters, "
                f"but the Trainer decays {len(decayed)}",
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


def _empty_model(config: Mapping[str, Any] | None) -> torch.nn.Module:
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        transformers = None
    model_class = getattr(transformers, architecture_of(config or {}) or "", None)
    is_known = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if model_class is None or not is_known or config is None:
        raise CheckpointError(
            "the optimizer numbers its parameters, and their names are unknown without a transformers model",
            hint=_SAVE_NAMES,
        )
    try:
        with torch.device("meta"):
            model: torch.nn.Module = model_class(model_class.config_class.from_dict(dict(config)))
    except Exception as error:
        raise CheckpointError(
            f"transformers cannot build {model_class.__name__} from config.json: {error!r}", hint=_SAVE_NAMES
        ) from error
    return model
