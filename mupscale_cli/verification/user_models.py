"""Building a model with the user's own function, and loading a checkpoint's weights into it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mupscale_cli.architecture.wrappers import strip_wrappers
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import VerifyError
from mupscale_cli.files import require_plain
from mupscale_cli.text import listed
from mupscale_cli.verification.stored import PlainName, stored_tensors


def load_user_module(reference: str) -> tuple[ModuleType, Callable[[dict[str, Any]], nn.Module]]:
    """Import the module and build function of a reference such as `path/to/module.py:build` or `package.module:build`.

    Returns:
        The module and the function named after the colon.

    Raises:
        VerifyError: the module cannot be imported, or does not have the function.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise VerifyError(
            f"`--model {reference}` does not name a function", hint="write `--model path/to/module.py:build`"
        )
    is_file = source.endswith(".py")
    if is_file and not Path(source).exists():
        raise VerifyError(f"no file at `{source}`", hint="check the path before `:`")
    try:
        folder = str(Path(source).resolve().parent) if is_file else str(Path.cwd())
        if folder not in sys.path:
            sys.path.append(folder)  # for its neighbors, also when it builds; behind every package
        if is_file:
            require_plain(Path(source))
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
    except Exception as error:
        raise VerifyError(f"cannot import `{source}`: {error}") from error
    build = getattr(module, name, None)
    if not callable(build):
        raise VerifyError(f"`{source}` has no function `{name}`")
    return module, build


def user_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the argument for a user's `build`: config.json, or the shapes of the tensors if there is none."""
    return stated_config(checkpoint.config, checkpoint.specs)


def stated_config(config: Mapping[str, Any] | None, specs: Iterable[TensorSpec]) -> dict[str, Any]:
    """Return a config; or the shapes of the tensors, by name, if there is none."""
    return dict(config) if config is not None else {"shapes": {spec.name: list(spec.shape) for spec in specs}}


def _convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert parameters and buffers of floating-point numbers; complex ones become complex numbers of that type."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
        elif tensor.is_complex():  # `Module.to` would drop the imaginary parts
            tensor.data = tensor.data.to(dtype.to_complex())


def build_user_model(
    build: Callable[[dict[str, Any]], nn.Module],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    plain_name: PlainName = strip_wrappers,
) -> nn.Module:
    """Build a user-defined model and load the checkpoint's weights; returns it in evaluation mode.

    Args:
        build: the user's function; it takes the dict that `user_config` returns.
        checkpoint: source of the weights.
        dtype: type of all parameters and buffers.
        plain_name: returns the model's name for a stored tensor.

    Raises:
        VerifyError: `build` fails or does not return a module, or its parameters are not the checkpoint's.
    """
    try:
        model = build(user_config(checkpoint))
    except Exception as error:  # the user's own code may raise anything
        raise VerifyError(f"`--model` failed to build a model for `{checkpoint.path}`: {error!r}") from error
    if not isinstance(model, nn.Module):
        raise VerifyError(f"`--model` returned {type(model).__name__}, expected an nn.Module")
    state = stored_tensors(checkpoint, plain_name)
    _convert(model, dtype)  # before loading, so that the weights are not rounded to the model's initial type
    mismatch = f"the model of `--model` does not match `{checkpoint.path}`"
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise VerifyError(f"{mismatch}: {error}") from error
    # A tied parameter has several names, and the file may use any of them. Buffers may be missing from the file.
    loaded = {id(value) for name, value in model.named_parameters(remove_duplicate=False) if name in state}
    missing = [name for name, value in model.named_parameters() if name in missing and id(value) not in loaded]
    if missing or unexpected:
        lacking = (f"the model lacks {listed(unexpected, 3)}", f"the file lacks {listed(missing, 3)}")
        parts = [part for part, names in zip(lacking, (unexpected, missing), strict=True) if names]
        raise VerifyError(
            f"{mismatch}: {'; '.join(parts)}",
            hint="give the model's parameters the names that the checkpoint uses",
        )
    return model.eval()
