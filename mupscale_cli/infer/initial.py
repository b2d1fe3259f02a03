"""The first guess of the search: the most likely choice for every group."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from torch import nn

from mupscale_cli.infer.layouts import Choice, Group
from mupscale_cli.infer.shapes import CandidateAxis
from mupscale_cli.infer.trials import State
from mupscale_cli.infer.vocabulary import EXPERTS_PER_TOKEN, FUSED, QUERY, kind_of, module_of


def is_tied(model: nn.Module) -> bool:
    """Return whether an embedding and a linear layer share their weight."""
    embeddings = {m.weight.data_ptr() for m in model.modules() if isinstance(m, nn.Embedding)}
    return any(m.weight.data_ptr() in embeddings for m in model.modules() if isinstance(m, nn.Linear))


def initial_state(
    groups: tuple[Group, ...],
    tied: bool,
    last_owner: str | None,
    axes: Iterable[CandidateAxis],
    config: dict[str, object],
) -> State:
    """Return the most likely choice for every group, and the config keys that move with experts.

    Args:
        groups: the tensors.
        tied: whether the readout shares the embedding's weight.
        last_owner: the module with the last gain over the residual stream. With a tied readout it takes the factor
            1/k.
        axes: the axes to widen.
        config: the config of the tiny model.
    """
    choices = []
    for group in groups:
        choice = Choice((0,) * len(group.dims))
        if tied and group.owner == last_owner and "embed" in group.axes:
            choice = choice.with_power("embed", Fraction(-1))
        choices.append(_with_scaled_query(group, choice))
    keys = [
        (axis.name, key, 1)
        for axis in axes
        if axis.name == "experts"
        for key, value in config.items()
        if EXPERTS_PER_TOKEN.fullmatch(key) and type(value) is int and key not in dict(axis.keys)
    ]
    return State(tuple(choices), tuple(keys))


def _with_scaled_query(group: Group, choice: Choice) -> Choice:
    """Scale queries by k^-0.5: scores grow by k, and attention's 1/sqrt(head_dim) removes only k^0.5."""
    size = next((axis for axis in sorted(group.axes) if kind_of(axis) == "d"), None)
    if size is None:
        return choice
    module = module_of(group.names[0])
    if QUERY.fullmatch(module):
        return choice.with_power(size, Fraction(-1, 2))
    if FUSED.fullmatch(module):
        for dim, dimension in enumerate(group.dims):
            pieces = dimension.forms[0].pieces
            if len(pieces) >= 3 and size in dimension.axes:
                choice = choice.with_piece(dim, 0, size, Fraction(-1, 2))
    return choice
