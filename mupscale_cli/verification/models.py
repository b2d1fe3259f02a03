"""Building the reference model of a checkpoint with the library that it is for."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from mupscale_cli.architecture.wrappers import strip_wrappers
from mupscale_cli.checkpoints.libraries import TRANSFORMERS, Library
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.errors import VerifyError
from mupscale_cli.text import count_text, listed
from mupscale_cli.verification.classes import model_class_of, read_config, without_data
from mupscale_cli.verification.precision import everything_in
from mupscale_cli.verification.result import CannotVerify
from mupscale_cli.verification.stored import PlainName, as_directory, stored_tensors
from mupscale_cli.verification.streamed import move_streamed
from mupscale_cli.verification.transformers import import_transformers
from mupscale_cli.verification.user_models import build_user_model

_log = logging.getLogger(__name__)  # `--debug` shows it
_COVERAGE = "mupscale_coverage"  # attribute of reference models
# Arguments of `from_pretrained`; the other implementations lack float64.
LOADING: Mapping[str, Any] = MappingProxyType(
    {
        "attn_implementation": "eager",
        "experts_implementation": "eager",
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are listed, and refused by their names and shapes
    }
)
_SMALL_MODEL = 1 << 24  # elements: masks and tables of positions are buffers, which no checkpoint stores


def load_stored(
    transformers: Any,
    model_class: Any,
    checkpoint: Checkpoint,
    plain_name: PlainName = strip_wrappers,
    streamed: torch.dtype | None = None,
    **options: Any,
) -> Any:
    """Return what `from_pretrained` of a class returns for a checkpoint's config and tensors; see `stored_tensors`."""
    config = read_config(transformers, model_class, checkpoint.config or {})
    if model_class is transformers.AutoModelForCausalLM:  # needs a folder
        model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return model_class.from_pretrained(
        None, config=config, state_dict=stored_tensors(checkpoint, plain_name, streamed), **options
    )


def _require_plain_names(checkpoint: Checkpoint, plain_name: PlainName, reason: str) -> None:
    """Refuse wrapped names in a model that its library reads from the files itself."""
    wrapped = next((name for name in checkpoint.tensors if plain_name(name) != name), None)
    if wrapped is not None:
        raise CannotVerify(
            f"{reason}, and `{wrapped}` is not the name that its class knows",
            hint="`mupscale verify --only weights` compares the weights alone",
        )


@dataclass(frozen=True)
class Coverage:
    """Where a checkpoint and the reference class differ.

    Attributes:
        missing: parameters of the class that the checkpoint lacks and the recipe calls optional, sorted.
        unused: tensors of the checkpoint that the class ignores, sorted.
    """

    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


_COMPLETE = Coverage()


def coverage(model: nn.Module) -> Coverage:
    """Return where the checkpoint of a reference model and its class differ."""
    found: Coverage = vars(model).get(_COVERAGE, _COMPLETE)
    return found


def can_stream(checkpoint: Checkpoint) -> bool:
    """Tell whether a class of transformers computes a checkpoint, so that its weights may stay in their file."""
    has_own_code = checkpoint.trained is not None and checkpoint.trained.layout.library is not None
    return checkpoint.library.load is None and not has_own_code


def build_reference_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device | None = None,
    is_optional: Callable[[str], bool] = lambda _: False,
    plain_name: PlainName = strip_wrappers,
    *,
    is_streamed: bool = False,
    fits: bool = False,
) -> nn.Module:
    """Load a checkpoint with the library that it is for; returns the model in evaluation mode.

    A published encoder may lack the pooler of its class, which transformers then initializes at random. Optional
    weights that are missing become NaN, so that every output that depends on them shows it.

    Args:
        checkpoint: weights and config.
        dtype: type of all floating-point parameters and buffers.
        device: where it runs. Default: the CPU.
        is_optional: tells whether a model without a parameter may be complete.
        plain_name: returns the name that transformers knows for a stored tensor.
        is_streamed: whether the weights of a class of transformers may stay in their file; see `streamed`. Such a model
            cannot be trained.
        fits: whether it is known that the class has the checkpoint's sizes; see `fitting`.

    Raises:
        CannotVerify: the library is not installed or does not have the class, or the checkpoint has no config.
        VerifyError: the library cannot load the checkpoint, or would initialize some weights at random.
    """
    if checkpoint.config is None:
        raise CannotVerify(
            "the checkpoint has no config.json to build the model from; "
            "give your own model with `--model module.py:build`"
        )
    layout = None if checkpoint.trained is None else checkpoint.trained.layout
    if layout is not None and layout.library is not None:
        return _build_natively(checkpoint, layout.library, dtype, device, plain_name)
    if layout is not None and layout.recipe is not None:
        raise CannotVerify(
            f"{layout.title} builds its models with its own code: save what `mupscale help trainers` gives for it "
            f"as reference.py, {layout.own_code}, and pass `--model reference.py:build`"
        )
    if layout is not None and checkpoint.library.load is not None:  # it does not read the trainer's file
        return _build_natively(checkpoint, checkpoint.library, dtype, device, plain_name)
    if checkpoint.library.load is not None:
        _require_plain_names(checkpoint, plain_name, f"{checkpoint.library.name} reads the file")
        return _load_natively(checkpoint, checkpoint.config, dtype, device, fits=fits)
    return _load_with_transformers(
        checkpoint, checkpoint.config, dtype, device, is_optional, plain_name, is_streamed=is_streamed, fits=fits
    )


def package_of(library: Library) -> Any:
    """Import a library.

    Raises:
        CannotVerify: it is not installed.
    """
    try:
        return library.package()
    except ImportError as error:
        raise CannotVerify(
            f"{library.name} is not installed: {library.install}, or give your own model with `--model module.py:build`"
        ) from error


def _build_natively(
    checkpoint: Checkpoint, library: Library, dtype: torch.dtype, device: torch.device | None, plain_name: PlainName
) -> nn.Module:
    """Build a trainer's own model and load the weights into it."""
    package = package_of(library)

    def build(config: dict[str, Any]) -> nn.Module:
        with everything_in(dtype):  # not while the weights are read, whose types the files determine
            return library.build(package, config)

    return build_user_model(build, checkpoint, dtype, plain_name).to(device=device)


def _load_natively(
    checkpoint: Checkpoint, config: dict[str, Any], dtype: torch.dtype, device: torch.device | None, *, fits: bool
) -> nn.Module:
    """Load a checkpoint as the users of its library do, from a folder of only its config and its weights."""
    library = checkpoint.library
    assert library.load is not None
    package = package_of(library)
    if not fits:
        _check_size(lambda: library.build(package, config), checkpoint)
    with as_directory(checkpoint, is_alone=True) as directory, everything_in(dtype):
        try:
            model = library.load(package, directory)
        except Exception as error:  # tell the user that the library raised it
            raise VerifyError(f"{library.name} cannot load `{checkpoint.path}`: {error}") from error
    return model.eval().to(device=device, dtype=dtype)


def _load_with_transformers(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device | None,
    is_optional: Callable[[str], bool],
    plain_name: PlainName,
    *,
    is_streamed: bool,
    fits: bool,
) -> nn.Module:
    """Load a checkpoint with transformers, with eager attention; its weights may stay in their file."""
    transformers = import_transformers(
        CannotVerify(
            f"transformers is not installed: {TRANSFORMERS.install}, "
            "or give your own model with `--model module.py:build`"
        )
    )
    model_class = model_class_of(transformers, config, [*map(plain_name, checkpoint.tensors)])
    if not fits:
        _check_size(lambda: model_class(read_config(transformers, model_class, config)), checkpoint)
    try:
        with _creating_weights_in(dtype), _keeping_frozen() as freeze:
            streamed = dtype if is_streamed else None
            model, info = load_stored(
                transformers, model_class, checkpoint, plain_name, streamed, dtype=dtype, **LOADING
            )
    except Exception as error:  # tell the user that transformers raised it
        raise VerifyError(f"transformers cannot load `{checkpoint.path}`: {error}") from error
    built: nn.Module = model.eval()
    _compute_tables(built, dtype)
    freeze()
    missing = {name for name in info["missing_keys"] if is_optional(name) and _becomes_nan(built, name)}
    shapes = (f"{name} of {_text(stored)}, expected {_text(own)}" for name, stored, own in info["mismatched_keys"])
    for problem, names in (("missing keys", {*info["missing_keys"]} - missing), ("mismatched keys", {*shapes})):
        if names:
            raise VerifyError(
                f"`{checkpoint.path}` does not match {model_class.__name__}: {problem} {listed(sorted(names), 3)}",
                hint="check that config.json belongs to these weights",
            )
    setattr(built, _COVERAGE, Coverage(tuple(sorted(missing)), tuple(sorted(info["unexpected_keys"]))))
    if is_streamed:
        move_streamed(built, device or torch.device("cpu"))
        for buffer in built.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(dtype)
        return built
    return built.to(device=device, dtype=dtype)


def _text(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _compute_tables(model: Any, dtype: torch.dtype) -> None:
    """Compute the buffers that no checkpoint stores again, in one type: transformers has computed them in float32.

    Where a table of sines and cosines multiplies before it divides, its frequencies round differently in a wider model.
    """
    for module in model.modules():
        buffers = {name for name, _ in module.named_buffers()}
        is_table = bool(buffers) and buffers <= module._non_persistent_buffers_set  # noqa: SLF001 (torch has no other name)
        if is_table and next(module.parameters(), None) is None:
            with everything_in(dtype), torch.no_grad():
                model._init_weights(module)  # noqa: SLF001 (what transformers calls after loading)


def _becomes_nan(model: nn.Module, name: str) -> bool:
    """Replace a parameter with a buffer of NaNs, which nothing trains; return whether that is possible."""
    owner, _, own_name = name.rpartition(".")
    module = model.get_submodule(owner)
    parameter = dict(module.named_parameters(recurse=False)).get(own_name)
    if parameter is None:  # a buffer
        return False
    delattr(module, own_name)
    module.register_buffer(own_name, torch.full_like(parameter.detach(), torch.nan), persistent=False)
    return True


def _check_size(build: Callable[[], nn.Module], checkpoint: Checkpoint) -> None:
    """Refuse a config whose model is much larger than the checkpoint, before its memory is allocated.

    Args:
        build: builds the model; if that fails, loading it will tell why.
        checkpoint: the checkpoint.

    Raises:
        VerifyError: the model has more than twice as many elements, parameters and buffers together.
    """
    try:
        blank = without_data(build)
    except Exception as error:  # noqa: BLE001 (loading the model will tell)
        _log.debug("the size of the model is unknown: %s", error)
        return
    asked = sum(tensor.numel() for tensor in (*blank.parameters(), *blank.buffers()))
    stored = sum(math.prod(spec.shape) for spec in checkpoint.specs)
    if asked > 2 * stored + _SMALL_MODEL:
        raise VerifyError(
            f"config.json of `{checkpoint.path}` describes a model of {count_text(asked)} elements, "
            f"but the checkpoint has {count_text(stored)}",
            hint="config.json and the weights belong to different models; download or save the checkpoint again",
        )


@contextmanager
def _keeping_frozen() -> Iterator[Callable[[], None]]:
    """Yield a function that freezes the parameters that a class freezes; transformers forgets this when it loads them.

    A class builds its model without data, and loading replaces each parameter by one that has some.
    """
    frozen: list[tuple[nn.Module, str]] = []

    def note(module: nn.Module, name: str, value: Tensor | None) -> None:
        before = module._parameters.get(name)  # noqa: SLF001 (torch has no other name)
        is_loaded = before is not None and before.is_meta and value is not None and not value.is_meta
        if before is not None and is_loaded and not before.requires_grad:
            frozen.append((module, name))

    def freeze() -> None:
        for module, name in frozen:
            module.get_parameter(name).requires_grad_(False)

    hook = register_module_parameter_registration_hook(note)
    try:
        yield freeze
    finally:
        hook.remove()


@contextmanager
def _creating_weights_in(dtype: torch.dtype) -> Iterator[None]:
    """Make modules create all their floating-point weights in one type.

    Some classes always create a router or a norm in float32, and transformers converts each loaded weight to the type
    of its parameter: a float64 checkpoint would be rounded.
    """

    def cast(_module: nn.Module, _name: str, value: Tensor | None) -> Any:
        if value is None or not value.is_floating_point() or value.dtype == dtype:
            return None  # torch keeps the value
        converted = value.detach().to(dtype)
        if isinstance(value, nn.Parameter):
            converted = nn.Parameter(converted, value.requires_grad)
        vars(converted).update(vars(value))  # transformers marks loaded weights, and initializes the others at random
        return converted

    hooks = register_module_parameter_registration_hook(cast), register_module_buffer_registration_hook(cast)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
