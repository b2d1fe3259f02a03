"""Widen the state of the learning rate scheduler that the Trainer of transformers saves next to optimizer.pt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from mupscale_cli.checkpoints.containers.nested import check_structure
from mupscale_cli.checkpoints.containers.torch_file import check_archive
from mupscale_cli.checkpoints.json_files import read_json
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.files import read_bytes
from mupscale_cli.text import first_line

# What schedulers of torch and transformers store for each group: rates, which follow the group's, and other values.
_RATES = ("base_lrs", "_last_lr", "_init_lrs", "min_lrs", "max_lrs")
_OTHERS = ("lr_lambdas", "base_momentums", "max_momentums")
NESTED = "_schedulers"


def widen_scheduler(source: Path, target: Path, groups: Sequence[tuple[int, float]]) -> None:
    """Write a learning rate scheduler's state with one entry for each wide group.

    Args:
        source: the narrow scheduler.pt.
        target: the scheduler.pt to write.
        groups: for each wide group, the index of its narrow group and the factor of its learning rate.

    Raises:
        CheckpointError: the file is not the state of a scheduler.
    """
    torch.save(wide_scheduler(source, groups), target)


def wide_scheduler(source: Path, groups: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return the state that `widen_scheduler` writes."""
    return regrouped(read_scheduler(source), groups)


def is_schedule(value: Any, num_groups: int) -> bool:
    """Tell whether a value is the state of a learning rate scheduler of an optimizer with that many groups."""
    rates = value.get("base_lrs") if isinstance(value, Mapping) else None
    return isinstance(rates, list) and len(rates) == num_groups


def regrouped(state: Mapping[str, Any], groups: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return the values of a scheduler, and of schedulers in it, with one entry for each new group.

    Args:
        state: the values by name.
        groups: for each new group, the index of the old group that it comes from and the factor of its learning rate.

    Raises:
        PlanError: the schedule has a rate that is the same for all groups, so that it cannot be scaled.
    """
    if state.get("eta_min") and any(factor != 1 for _, factor in groups):
        raise PlanError(
            f"the scheduler's `eta_min` is {state['eta_min']} for every group, but wide groups have other rates",
            hint="use a schedule of factors, such as `LambdaLR`, or `eta_min=0`",
        )
    wide = dict(state)
    wide |= {key: [state[key][index] * float(factor) for index, factor in groups] for key in _RATES if key in state}
    wide |= {key: [state[key][index] for index, _ in groups] for key in _OTHERS if key in state}
    if NESTED in state:
        wide[NESTED] = [regrouped(each, groups) for each in state[NESTED]]
    return wide


def wide_progress(file: Path, groups: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return the content of a JSON file with the progress of training, with its schedules widened.

    Args:
        file: the narrow file.
        groups: as in `regrouped`; none if the optimizer's state is not widened.

    Raises:
        MupscaleError: the file cannot be read, or its schedule cannot be widened.
    """
    num_groups = 1 + max((index for index, _ in groups), default=-1)

    def widened(value: Any) -> Any:
        if isinstance(value, list):
            return [widened(each) for each in value]
        if not isinstance(value, Mapping):
            return value
        if groups and is_schedule(value, num_groups):
            return regrouped(value, groups)
        return {key: widened(inner) for key, inner in value.items()}

    return {key: widened(value) for key, value in read_json(file).items()}


def regroup_scheduler(scheduler: Any, groups: Sequence[tuple[int, float]]) -> None:
    """Give a scheduler, and the schedulers in it, one entry for each new group of its optimizer.

    Args:
        scheduler: a scheduler of torch.
        groups: as in `regrouped`.
    """
    for each in getattr(scheduler, NESTED, ()):
        regroup_scheduler(each, groups)
    own = {key: value for key, value in vars(scheduler).items() if key != NESTED}
    vars(scheduler).update(regrouped(own, groups))


def read_scheduler(file: Path) -> dict[str, Any]:
    """Read the state of a learning rate scheduler.

    Raises:
        CheckpointError: the file is not the state of a scheduler.
    """
    try:
        check_archive(file)
        state: Any = torch.load(BytesIO(read_bytes(file)), weights_only=True)
        check_structure(state, file)
        len(state["_last_lr"])
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"cannot read the scheduler state `{file}`: {first_line(error)}",
            hint="only plain values are read, since a pickle could run code",
        ) from error
    return dict(state)
