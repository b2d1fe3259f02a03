"""Progress of running a model, by the bytes of the weights that its modules have used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mupscale_cli.verification.streamed import StreamedWeight


def count_weights(model: nn.Module, advance: Callable[[int], None]) -> int:
    """Report the bytes of every module's weights whenever the module has run; return those of one pass.

    Experts that no token reaches do not run, so a pass may take less than it is expected to.

    Args:
        model: the model; copies of it report as well.
        advance: called with a number of bytes.
    """
    total = 0
    for module in model.modules():
        if size := sum(map(_stored_bytes, module.parameters(recurse=False))):
            module.register_forward_hook(_reporting(advance, size))
            total += size
    return total


def _reporting(advance: Callable[[int], None], size: int) -> Callable[[Any, Any, Any], None]:
    def report(_module: Any, _inputs: Any, _output: Any) -> None:
        advance(size)

    return report


def _stored_bytes(parameter: Tensor) -> int:
    stored = parameter.stored if isinstance(parameter, StreamedWeight) else parameter
    return stored.numel() * stored.element_size()
