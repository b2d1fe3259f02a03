"""A module in memory as the source of a growth: its tensors and its config, and a wider module to fill."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakIdKeyDictionary

from mupscale_cli.checkpoints.config import untagged
from mupscale_cli.checkpoints.header import StoredTensor
from mupscale_cli.checkpoints.libraries import library_of
from mupscale_cli.checkpoints.reading import Checkpoint
from mupscale_cli.dtypes import TensorSpec, dtype_of
from mupscale_cli.errors import PlanError
from mupscale_cli.plan import Plan

Build = Callable[[dict[str, Any]], nn.Module]
# Wrappers whose content is grown, with the attribute that holds it, and what to do with the result.
_WRAPPERS: dict[str, tuple[str, str]] = {
    "torch._dynamo.eval_frame.OptimizedModule": ("_orig_mod", "`torch.compile`"),
    "torch.nn.parallel.distributed.DistributedDataParallel": ("module", "`DistributedDataParallel`"),
    "torch.nn.parallel.data_parallel.DataParallel": ("module", "`DataParallel`"),
}
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")  # how attributes with hooks of a module end
_MODES = {"training", "gradient_checkpointing", "_gradient_checkpointing_func"}  # attributes of modules
_REFUSED = {
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": (
        "keeps its parameters flattened and sharded",
        "save a full state dict, widen it with `mupscale widen`, and continue from there; or shard with `fully_shard`",
    ),
    "torch.optim.swa_utils.AveragedModel": (
        "averages another model",
        "grow its `module` with the same options and seed, and wrap the result again",
    ),
}


@dataclass(frozen=True)
class LiveModel:
    """A module in memory, as far as growing it is concerned.

    Attributes:
        module: the module, without wrappers for compilation or data parallelism.
        tensors: its parameters and its buffers that a checkpoint would have, each under one of its names.
        config: its config as plain values; None if it has none.
        build: makes a module of the same kind from a config.
        unwrapped: the wrappers that were taken off, as a user writes them.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    config: dict[str, Any] | None
    build: Build
    unwrapped: tuple[str, ...]

    @property
    def name(self) -> str:
        return type(self.module).__name__

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in self.tensors.values()), torch.device("cpu"))

    def as_checkpoint(self) -> Checkpoint:
        """Return the headers of the checkpoint that saving the module would give, which has no files.

        Raises:
            PlanError: a tensor has a type that no checkpoint can have.
        """
        tensors = {spec.name: StoredTensor(spec, Path(), 0) for spec in self._saved_specs()}
        return Checkpoint(Path(self.name), True, (), tensors, self.config, {}, title=f"the model {self.name}")

    def _saved_specs(self) -> Iterator[TensorSpec]:
        blank = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in self.tensors.items()}
        if (transformers := _transformers_of(self.module)) is not None:  # which saves some parameters in another form
            blank = transformers.core_model_loading.revert_weight_conversion(self.module, blank)
        return (spec_of(name, tensor) for name, tensor in blank.items())


def read_live(module: nn.Module, config: Mapping[str, Any] | None = None, build: Build | None = None) -> LiveModel:
    """Describe a module in memory.

    Args:
        module: the module; wrappers for compilation and data parallelism are taken off.
        config: its config. Default: that of its attribute `config`, if that is a config of transformers, a dataclass or
            a mapping.
        build: makes a module from a config. Default: the module's class, or the library that the config is for.

    Raises:
        PlanError: the module is wrapped in a way that hides its parameters, or has no data.
    """
    unwrapped = []
    while (wrapper := _WRAPPERS.get(_class_name(module))) is not None:
        attribute, written = wrapper
        module = getattr(module, attribute)
        unwrapped.append(written)
    for inner in module.modules():
        if (refusal := _REFUSED.get(_class_name(inner))) is not None:
            raise PlanError(f"cannot grow a `{type(inner).__name__}`: it {refusal[0]}", hint=refusal[1])
    tensors = live_tensors(module)
    empty = next((name for name, tensor in tensors.items() if tensor.is_meta), None)
    if empty is not None:
        raise PlanError(f"`{empty}` of the model is on the device `meta`, so it has no data to grow")
    own_config, own_build = _form(module)
    values = own_config if config is None else dict(config)
    return LiveModel(module, tensors, values, build or own_build, tuple(unwrapped))


def live_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module's state dict, each under one name: the one that a checkpoint would have."""
    state = module.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    unsaved = getattr(module, "all_tied_weights_keys", None) or {}  # of transformers
    names: dict[int, str] = {}
    for name in sorted(tensors, key=lambda name: name in unsaved):
        names.setdefault(id(tensors[name]), name)
    return {name: value for name, value in tensors.items() if names[id(value)] == name}


def spec_of(name: str, tensor: Tensor) -> TensorSpec:
    """Return the spec of a tensor.

    Raises:
        PlanError: no checkpoint can have its type.
    """
    try:
        return TensorSpec(name, dtype_of(tensor.dtype).name, tuple(tensor.shape))
    except KeyError as error:
        raise PlanError(f"`{name}` has the unsupported data type {tensor.dtype}") from error


def build_blank(live: LiveModel, plan: Plan) -> nn.Module:
    """Build the wide module with parameters that have no data; its buffers are computed as its class does.

    Raises:
        PlanError: the module cannot be built from the wide config.
    """
    config, hint = plan.config, "pass `build=`, a function that makes the model from its config"
    if config is None:
        hint = "pass `config=`, the model's config; without one, `build` is called with the shapes of the tensors alone"
        config = {"shapes": {tensor.target.name: list(tensor.target.shape) for tensor in plan.tensors}}
    on_gpu = [live.device] if live.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(on_gpu), torch.device(live.device), _blank_parameters():
            module = live.build(config)
    except Exception as error:  # the class may raise anything
        raise PlanError(f"cannot build the wide {live.name}: {error!r}", hint=hint) from error
    if not isinstance(module, nn.Module):
        raise PlanError(f"`build` returned {type(module).__name__}, expected an nn.Module")
    return module


@contextmanager
def _blank_parameters() -> Iterator[None]:
    """Give every parameter that is registered the device `meta`: it is neither kept nor initialized."""
    blank = WeakIdKeyDictionary()  # a parameter that is registered twice stays one parameter

    def without_data(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None  # torch keeps the value
        if parameter not in blank:
            blank[parameter] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
            vars(blank[parameter]).update(vars(parameter))
        return blank[parameter]

    hook = register_module_parameter_registration_hook(without_data)
    try:
        yield
    finally:
        hook.remove()


# Configs -------------------------------------------------------------------------------------------


def _form(module: nn.Module) -> tuple[dict[str, Any] | None, Build]:
    """Return a module's config as plain values, and how to build a module of the same kind from others."""
    config: Any = getattr(module, "config", None)
    if _transformers_of(module) is not None:
        return _saved_config(module, config), lambda values: type(module)(_config_like(config, values))
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        names = {field.name for field in dataclasses.fields(config) if field.init}
        known = dataclasses.asdict(config)

        def build(values: dict[str, Any]) -> nn.Module:
            changed = {name: values[name] for name in names if name in values and values[name] != known.get(name)}
            return type(module)(dataclasses.replace(config, **changed))

        return known, build
    return (dict(config) if isinstance(config, Mapping) else None), _build_with_library


def _build_with_library(config: dict[str, Any]) -> nn.Module:
    library = library_of(config)
    if library.key not in config:
        raise LookupError("the model has no config of a known kind")
    return library.build(library.package(), config)


def _transformers_of(module: nn.Module) -> Any:
    """Return the package transformers if a module is one of its models, else None."""
    transformers = sys.modules.get("transformers")  # it is imported if the module is
    is_model = transformers is not None and isinstance(module, transformers.PreTrainedModel)
    return transformers if is_model else None


def _saved_config(module: nn.Module, config: Any) -> dict[str, Any]:
    """Return what `save_pretrained` writes to config.json, which also names the class of the model."""
    values: dict[str, Any] = json.loads(config.to_json_string())
    return {**values, "architectures": [type(module).__name__.removeprefix("FSDP")]}  # the prefix of `fully_shard`


def _config_like(narrow: Any, values: Mapping[str, Any]) -> Any:
    """Return a config of transformers with other values and the same implementations of attention and experts."""

    def carry(narrow: Any, wide: Any) -> None:
        for name in ("_attn_implementation", "_experts_implementation"):
            if (chosen := getattr(narrow, name, None)) is not None:
                setattr(wide, name, chosen)
        for section in narrow.sub_configs:
            if getattr(narrow, section, None) is not None and getattr(wide, section, None) is not None:
                carry(getattr(narrow, section), getattr(wide, section))

    wide = type(narrow).from_dict(untagged(values))
    carry(narrow, wide)
    return wide


# Everything else of a module -----------------------------------------------------------------------


def carry_modes(narrow: nn.Module, wide: nn.Module, names: Iterable[tuple[str, str]]) -> None:
    """Put every submodule of the wide module into the mode of the one that it comes from.

    That is training or evaluation, and with transformers whether activations are computed again in the backward pass.

    Args:
        narrow: the narrow module.
        wide: the wide module.
        names: the narrow and the wide name of each parameter, which show where blocks have moved.
    """
    origins: dict[tuple[str, ...], tuple[str, ...]] = {}
    for before, after in names:
        old, new = before.split("."), after.split(".")
        if len(old) == len(new):
            origins.update({tuple(new[:count]): tuple(old[:count]) for count in range(1, len(new))})
    modules = dict(narrow.named_modules())
    for path, module in wide.named_modules():
        parts = tuple(path.split("."))
        moved = next((count for count in range(len(parts), 0, -1) if parts[:count] in origins), 0)
        source = modules.get(".".join((*origins.get(parts[:moved], ()), *parts[moved:])), narrow)
        for name in _MODES & vars(source).keys():
            setattr(module, name, vars(source)[name])


def become(module: nn.Module, wide: nn.Module) -> None:
    """Turn a module into a wide one of its class; its own hooks, and what others have set on it, stay."""
    vars(module).update({name: value for name, value in vars(wide).items() if not name.endswith(_HOOKS)})


def lost_hooks(narrow: nn.Module, wide: nn.Module) -> list[str]:
    """Return the names of the submodules whose hooks the wide module lacks; that of the module itself is empty."""
    counts = {path: _num_hooks(module) for path, module in wide.named_modules()}
    return [path for path, module in narrow.named_modules() if _num_hooks(module) > counts.get(path, 0)]


def _num_hooks(module: nn.Module) -> int:
    tables = (value for name, value in vars(module).items() if name.endswith(_HOOKS[0]) and isinstance(value, dict))
    own = sum(map(len, tables))
    return own + sum(len(vars(p).get("_backward_hooks") or ()) for p in module.parameters(recurse=False))


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
