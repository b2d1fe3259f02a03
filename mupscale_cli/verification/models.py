"""Building the reference model of a checkpoint: transformers' class, or the user's own."""

from __future__ import annotations

import importlib
import importlib.util
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from mupscale_cli.checkpoints.config import CONFIG, architecture_of, check_depth
from mupscale_cli.checkpoints.formats.safetensors import WEIGHTS
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.checkpoints.scratch import scratch_folder
from mupscale_cli.engine.memory import return_freed_memory
from mupscale_cli.errors import VerifyError
from mupscale_cli.verification.placement import Placement
from mupscale_cli.verification.result import CannotVerify
from mupscale_cli.verification.transformers import import_transformers


def load_user_module(reference: str) -> tuple[ModuleType, Callable[[dict[str, Any]], nn.Module]]:
    """Import `path/or/module.py:build`.

    Returns:
        The module and the function named after the colon.

    Raises:
        VerifyError: there is no such file, module or function.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise VerifyError(f"`--model {reference}` names no function", hint="write path/to/module.py:build")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except Exception as error:
        raise VerifyError(f"cannot import `{place}`: {error}") from error
    build = getattr(module, name, None)
    if not callable(build):
        raise VerifyError(f"`{place}` has no function `{name}`")
    return module, build


def user_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a user's `build` is given: config.json, or the tensors' shapes where there is none."""
    if checkpoint.config is not None:
        return checkpoint.config
    return {"shapes": {spec.name: list(spec.shape) for spec in checkpoint.specs}}


def build_user_model(
    build: Callable[[dict[str, Any]], nn.Module], checkpoint: Checkpoint, dtype: torch.dtype
) -> nn.Module:
    """The user's model with the checkpoint's weights, in evaluation mode.

    Raises:
        VerifyError: it is no module, or its parameters are not the checkpoint's.
    """
    try:
        model = build(user_config(checkpoint))
    except Exception as error:  # the user's own code may do anything
        raise VerifyError(f"the model of `--model` cannot be built for `{checkpoint.path}`: {error!r}") from error
    if not isinstance(model, nn.Module):
        raise VerifyError(f"`--model` returned {type(model).__name__}, expected an nn.Module")
    state: dict[str, torch.Tensor] = {}
    for file in checkpoint.files:
        with safe_open(file, framework="pt") as tensors:
            state.update({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118 (no mapping)
    model.to(dtype)  # before loading, which would round the weights to the type that the model was built in
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise VerifyError(f"the model of `--model` does not fit `{checkpoint.path}`: {error}") from error
    # Tied parameters have several names, of which the file has one; buffers may be missing.
    loaded = {id(value) for name, value in model.named_parameters(remove_duplicate=False) if name in state}
    missing = [name for name, value in model.named_parameters() if name in missing and id(value) not in loaded]
    if missing or unexpected:
        raise VerifyError(
            f"the model of `--model` does not fit `{checkpoint.path}`: it lacks {unexpected[:3]}, "
            f"the file lacks {missing[:3]}",
            hint="build the model with the names that the checkpoint has",
        )
    return model.eval()


def build_reference_model(checkpoint: Checkpoint, dtype: torch.dtype, where: Placement | None = None) -> nn.Module:
    """The transformers model of a checkpoint, in evaluation mode, with eager attention.

    Args:
        checkpoint: its weights and its config.
        dtype: of the weights.
        where: it is put; in memory if not given.

    Raises:
        CannotVerify: transformers is not installed, or there is no config to build from.
        VerifyError: transformers cannot load the checkpoint, or would invent some of its weights.
    """
    if checkpoint.config is None:
        raise CannotVerify(
            "it has no config.json that says how to build the model; give your own with `--model module.py:build`"
        )
    transformers = import_transformers(
        CannotVerify(
            "transformers is not installed: `pip install 'mupscale[hf]'`, or give your own model with `--model`"
        )
    )
    check_depth(checkpoint.config, len(checkpoint.tensors))
    model_class = _model_class(transformers, checkpoint.config)
    device_map = where.device_map if where else None
    offloading: dict[str, Any] = {}
    folders = ExitStack()  # for as long as weights may be read from them
    directory = folders.enter_context(as_directory(checkpoint))
    if device_map is not None:
        return_freed_memory()
        offloading = {"device_map": device_map, "offload_folder": str(folders.enter_context(scratch_folder()))}
    try:
        with _made_in(dtype):
            model, info = model_class.from_pretrained(
                directory,
                dtype=dtype,
                attn_implementation="eager",
                experts_implementation="eager",
                local_files_only=True,
                use_safetensors=True,  # not a pickle that lies beside them
                trust_remote_code=False,  # whatever the config says of code of its own
                output_loading_info=True,
                **offloading,
            )
    except Exception as error:  # whatever it is, the user needs to know which side it came from
        folders.close()
        raise VerifyError(f"transformers cannot load `{checkpoint.path}`: {error}") from error
    if device_map is None:
        folders.close()
    else:
        weakref.finalize(model, folders.close)
    for problem in ("missing_keys", "mismatched_keys"):
        if info.get(problem):
            raise VerifyError(
                f"`{checkpoint.path}` does not fill {model_class.__name__}: "
                f"{problem.replace('_', ' ')} {sorted(map(str, info[problem]))[:3]}",
                hint="config.json and the weights do not belong together",
            )
    built: nn.Module = model.eval()
    if device_map is None:
        return built.to(device=where.device if where else None, dtype=dtype)
    for buffer in built.buffers():  # parameters get their type when they are read
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)
    return built


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Make modules create all their weights in one floating-point type.

    Some classes create a router or a norm in float32 whatever type they are asked for, and transformers loads each
    weight in the type of the parameter that waits for it: a checkpoint in float64 would be rounded.
    """

    def cast(_module: nn.Module, _name: str, value: Tensor | None) -> Any:
        if value is None or not value.is_floating_point() or value.dtype == dtype:
            return None  # it stays
        made = value.detach().to(dtype)
        return nn.Parameter(made, value.requires_grad) if isinstance(value, nn.Parameter) else made

    hooks = register_module_parameter_registration_hook(cast), register_module_buffer_registration_hook(cast)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _model_class(transformers: Any, config: dict[str, Any]) -> Any:
    """The class that config.json names; without a name, the causal language model of its type."""
    own_code = "; the code that comes with the checkpoint (`auto_map`) is not run" if config.get("auto_map") else ""
    model_type = config.get("model_type")
    if model_type is not None and str(model_type) not in transformers.CONFIG_MAPPING:
        raise CannotVerify(
            f"transformers {transformers.__version__} has no model type `{model_type}`{own_code}; "
            "give your own model with `--model module.py:build`"
        )
    architecture = architecture_of(config)
    if architecture is None:
        return transformers.AutoModelForCausalLM
    model_class = getattr(transformers, architecture, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise CannotVerify(
            f"transformers has no model class `{architecture}`, which config.json names{own_code}; "
            "give your own model with `--model module.py:build`"
        )
    return model_class


@contextmanager
def as_directory(checkpoint: Checkpoint) -> Iterator[Path]:
    """A folder as transformers expects it; for a single file, whatever its name, one of links, removed afterwards."""
    if not checkpoint.is_file and (len(checkpoint.files) > 1 or checkpoint.files[0].name == WEIGHTS):
        yield checkpoint.path
        return
    with scratch_folder() as directory:
        (directory / CONFIG).write_text(_dump(checkpoint.config), encoding="utf-8")
        _link(checkpoint.files[0], directory / WEIGHTS)
        yield directory


def _dump(config: Any) -> str:
    import json

    return json.dumps(config)


def _link(file: Path, name: Path) -> None:
    try:
        name.symlink_to(file.resolve())
    except OSError:  # Windows without the privilege
        os.link(file, name)


def output_tensor(output: Any) -> Tensor:
    """The tensor that a model is asked for: its logits, else its last hidden state or the first it returns.

    Raises:
        VerifyError: it returns none.
    """
    named = output if isinstance(output, Mapping) else {}
    for name in ("logits", "last_hidden_state", *named):
        value = getattr(output, name, None)
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise VerifyError(f"the model returns {type(output).__name__}, expected a tensor")
    return output
