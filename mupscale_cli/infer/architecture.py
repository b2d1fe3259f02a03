"""Architectures that build models from configs: those of transformers, and functions of the user."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mupscale_cli.checkpoints.header import read_header
from mupscale_cli.checkpoints.libraries import Library
from mupscale_cli.errors import VerifyError
from mupscale_cli.infer.tiny import Task, model_class, randomize, use_eager
from mupscale_cli.infer.tiny_configs import config_class
from mupscale_cli.verification.inputs import reference_inputs, user_inputs
from mupscale_cli.verification.outputs import output_tensor
from mupscale_cli.verification.precision import everything_in

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


class Architecture(Protocol):
    """What drafting a recipe needs from an architecture.

    Attributes:
        name: its name in messages.
        config: the config of the tiny model, as in config.json.
    """

    name: str
    config: Config

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """Build a model in float64 and evaluation mode; any error means that the config is impossible."""

    def shapes(self, config: Mapping[str, Any]) -> Shapes:
        """Return the shape of every tensor on disk, by name."""

    def disk_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of a model as its checkpoint stores them."""

    def fill(self, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return a model of the config with these tensors from disk; it may be `model` itself."""

    def save(self, model: nn.Module, config: Mapping[str, Any], directory: Path) -> Path:
        """Save a checkpoint and return the path that `mupscale widen` takes."""

    def settings(self, stored: Mapping[str, Any]) -> Config:
        """Return the config that `build` takes, from the content of the config's file."""

    def run(self, model: nn.Module) -> Tensor:
        """Run the model on inputs that depend only on the architecture, and return its output."""


@dataclass
class TransformersArchitecture:
    """A model type of transformers with one of its heads."""

    name: str
    task: Task
    config: Config

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        with everything_in(torch.float64):
            model: nn.Module = self._class(self._config_object(config))
        return model.to(torch.float64).eval()

    def _config_object(self, config: Mapping[str, Any]) -> Any:
        config_object = config_class(self.name).from_dict(json.loads(json.dumps(config)))
        use_eager(config_object)
        return config_object

    @property
    def _class(self) -> Any:
        return model_class(self.name, self.task)

    @cached_property
    def _tiny_shapes(self) -> tuple[Shapes, Shapes, Shapes]:
        """Shapes of the tiny model: in memory, as its class converts them for the disk, and on disk."""
        model = self.build(self.config)
        return _shapes(model.state_dict()), _shapes(_converted(model)), _shapes(self.disk_tensors(model))

    @cached_property
    def _is_direct(self) -> bool:
        """Whether tensors have the same names and shapes on disk as in memory."""
        memory, _, disk = self._tiny_shapes
        return disk.items() <= memory.items()

    def shapes(self, config: Mapping[str, Any]) -> Shapes:
        _, converted, disk = self._tiny_shapes
        if not disk.items() <= converted.items():
            return _shapes(self.disk_tensors(self.build(config)))
        try:
            with torch.device("meta"):
                shapes = _shapes(_converted(self._class(self._config_object(config))))
        except (RuntimeError, NotImplementedError, TypeError):
            shapes = _shapes(_converted(self.build(config)))
        return {name: shape for name, shape in shapes.items() if name in disk or name not in converted}

    def disk_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
            model.save_pretrained(folder)  # type: ignore[operator]
            tensors: dict[str, Tensor] = {}
            for file in sorted(Path(folder).glob("*.safetensors")):
                order = [tensor.spec.name for tensor in read_header(file).tensors]
                loaded = load_file(file)
                tensors |= {name: loaded[name] for name in order}
        return tensors

    def fill(self, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        if self._is_direct:
            _, unexpected = model.load_state_dict(dict(tensors), strict=False)
            if unexpected:
                raise VerifyError(f"the model has no {unexpected[:3]}")
            return model
        with everything_in(torch.float64):
            loaded, info = self._class.from_pretrained(
                None,
                config=self._config_object(config),
                state_dict=dict(tensors),
                dtype=torch.float64,
                attn_implementation="eager",
                experts_implementation="eager",
                output_loading_info=True,
            )
        for problem in ("missing_keys", "mismatched_keys"):
            if info.get(problem):
                raise VerifyError(f"{problem} {sorted(map(str, info[problem]))[:3]}")
        filled: nn.Module = loaded.to(torch.float64).eval()
        return filled

    def save(self, model: nn.Module, config: Mapping[str, Any], directory: Path) -> Path:
        del config  # the model holds it
        model.save_pretrained(directory)  # type: ignore[operator]
        return directory

    def settings(self, stored: Mapping[str, Any]) -> Config:
        return {key: _without_tags(value) for key, value in stored.items()}

    def run(self, model: nn.Module) -> Tensor:
        inputs = reference_inputs(model, torch.Generator().manual_seed(0))
        with everything_in(torch.float64), torch.no_grad():
            return output_tensor(model(**inputs.keywords))


@dataclass
class UserArchitecture:
    """An architecture that the user's function builds."""

    name: str
    module: ModuleType
    build_model: Callable[[Config], nn.Module]
    config: Config

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        with everything_in(torch.float64):
            return self.build_model(dict(config)).to(torch.float64).eval()

    def shapes(self, config: Mapping[str, Any]) -> Shapes:
        return _shapes(self.disk_tensors(self.build(config)))

    def disk_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        seen = set()
        for name, tensor in model.state_dict().items():
            if tensor.data_ptr() not in seen or tensor.numel() == 0:
                tensors[name] = tensor.detach().clone()
            seen.add(tensor.data_ptr())
        return tensors

    def fill(self, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        del config
        model.load_state_dict(dict(tensors), strict=False)
        return model

    def save(self, model: nn.Module, config: Mapping[str, Any], directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(self.disk_tensors(model), directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return directory

    def settings(self, stored: Mapping[str, Any]) -> Config:
        return dict(stored)

    def run(self, model: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        with everything_in(torch.float64), torch.no_grad():
            inputs = user_inputs(self.module, self.config, None, generator, model)
            return output_tensor(model(*inputs.arguments, **inputs.keywords))


@dataclass
class LibraryArchitecture:
    """An architecture that a library other than transformers builds; the keys of its config are dotted."""

    name: str
    package: Any
    library: Library
    config: Config

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        with everything_in(torch.float64):
            return self.library.build(self.package, nested_config(config)).to(torch.float64).eval()

    def shapes(self, config: Mapping[str, Any]) -> Shapes:
        with torch.device("meta"):
            return _shapes(self.library.build(self.package, nested_config(config)).state_dict())

    def disk_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def fill(self, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        del config
        model.load_state_dict(dict(tensors), strict=False)
        return model

    def save(self, model: nn.Module, config: Mapping[str, Any], directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(self.disk_tensors(model), directory / self.library.weights[0], metadata={"format": "pt"})
        (directory / self.library.config).write_text(json.dumps(nested_config(config)), encoding="utf-8")
        return directory

    def settings(self, stored: Mapping[str, Any]) -> Config:
        return flat_config(stored)

    def run(self, model: nn.Module) -> Tensor:
        inputs = reference_inputs(model, torch.Generator().manual_seed(0), self.library)
        with everything_in(torch.float64), torch.no_grad():
            return output_tensor(model(*inputs.arguments, **inputs.keywords))


def flat_config(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Return a config whose nested keys are dotted: `model_args.embed_dim`."""
    flat: Config = {}
    for key, value in config.items():
        flat |= flat_config(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nested_config(config: Mapping[str, Any]) -> Config:
    """Return the config that `flat_config` flattened."""
    nested: Config = {}
    for name, value in config.items():
        *path, key = name.split(".")
        section = nested
        for part in path:
            section = section.setdefault(part, {})
        section[key] = value
    return nested


def _converted(model: Any) -> Mapping[str, Tensor]:
    """Return the tensors of a model of transformers, possibly on the meta device, as `save_pretrained` names them."""
    from transformers.core_model_loading import revert_weight_conversion

    converted: dict[str, Tensor] = revert_weight_conversion(model, model.state_dict())
    return converted


def _without_tags(value: Any) -> Any:
    """Return a value of config.json, in which transformers writes infinity as `{"__float__": "Infinity"}`."""
    if isinstance(value, list):
        return [_without_tags(each) for each in value]
    if isinstance(value, dict):
        return (
            float(value["__float__"]) if "__float__" in value else {key: _without_tags(v) for key, v in value.items()}
        )
    return value


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def random_model(architecture: Architecture, seed: int = 0) -> nn.Module:
    """Build the tiny model of an architecture with random parameters and buffers."""
    return randomize(architecture.build(architecture.config), seed)
