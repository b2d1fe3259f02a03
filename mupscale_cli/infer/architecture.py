"""Architectures that build models from configs: those of transformers, and functions of the user."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mupscale_cli.checkpoints.config import untagged
from mupscale_cli.checkpoints.header import read_header
from mupscale_cli.checkpoints.libraries import Library
from mupscale_cli.errors import VerifyError
from mupscale_cli.infer.placement import Placement, find_placement, numbered
from mupscale_cli.infer.tiny import Task, model_class, randomize, use_eager, without_initialization
from mupscale_cli.infer.tiny_configs import config_class, is_part
from mupscale_cli.verification.inputs.libraries import reference_inputs
from mupscale_cli.verification.inputs.user import user_inputs
from mupscale_cli.verification.outputs import named_outputs
from mupscale_cli.verification.precision import everything_in

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
_MAX_REUSABLE = 50_000_000  # parameters of all models that are kept for another question


class Architecture(ABC):
    """What drafting a recipe needs from an architecture.

    Attributes:
        name: its name in messages.
        config: the config of the tiny model, as in config.json.
    """

    name: str
    config: Config
    _num_reusable = 0  # parameters of the models that are kept

    @abstractmethod
    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """Build a model in float64 and evaluation mode; any error means that the config is impossible."""

    @abstractmethod
    def disk_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the tensors of a model as its checkpoint stores them."""

    @abstractmethod
    def save(self, model: nn.Module, config: Mapping[str, Any], directory: Path) -> Path:
        """Save a checkpoint and return the path that `mupscale widen` takes."""

    @abstractmethod
    def settings(self, stored: Mapping[str, Any]) -> Config:
        """Return the config that `build` takes, from the content of the config's file."""

    @abstractmethod
    def run(self, model: nn.Module) -> dict[str, Tensor]:
        """Run the model on inputs that depend only on the architecture, and return all its outputs by name."""

    def fill(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return a model of the config with these tensors from disk. The next call for this config overwrites it."""
        model = self.reusable(config)
        model.load_state_dict(dict(tensors), strict=False)
        return model

    def stored_shapes(self, model: nn.Module) -> Shapes:
        """Return the shapes of the tensors that a checkpoint of a model stores, by name."""
        return _shapes(self.disk_tensors(model))

    def reusable(self, config: Mapping[str, Any]) -> nn.Module:
        """Return a model of a config, built once for all questions. Its values are those of its last use."""
        key = _key(config)
        if key not in self._models:
            self._models[key] = self.build(config)
            self._num_reusable += sum(parameter.numel() for parameter in self._models[key].parameters())
            if self._num_reusable > _MAX_REUSABLE:
                self._models, self._num_reusable = {key: self._models[key]}, 0
        return self._models[key]

    def shapes(self, config: Mapping[str, Any]) -> Shapes:
        """Return the shape of every tensor on disk, by name; any error means that the config is impossible."""
        key = _key(config)
        if key not in self._known_shapes:
            try:
                self._known_shapes[key] = self.stored_shapes(self.reusable(config))
            except Exception as error:  # noqa: BLE001 (architectures raise anything)
                self._known_shapes[key] = error
        found = self._known_shapes[key]
        if isinstance(found, Exception):
            raise found
        return found

    @cached_property
    def _models(self) -> dict[str, nn.Module]:
        return {}

    @cached_property
    def _known_shapes(self) -> dict[str, Shapes | Exception]:
        return {}


def _key(config: Mapping[str, Any]) -> str:
    return repr(sorted(config.items(), key=lambda item: item[0]))


@dataclass
class TransformersArchitecture(Architecture):
    """A model type of transformers with one of its heads; the keys of its config are dotted within its parts."""

    name: str
    task: Task
    config: Config

    def __post_init__(self) -> None:
        self.config = flat_parts(self.config)

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        if self._needs_initialization:
            return self._initialized(config)
        with everything_in(torch.float64), without_initialization():
            model: nn.Module = self._class(self._config_object(config))
        model.tie_weights()  # type: ignore[operator]
        return model.to(torch.float64).eval()

    def _initialized(self, config: Mapping[str, Any]) -> nn.Module:
        with everything_in(torch.float64):
            model: nn.Module = self._class(self._config_object(config))
        return model.to(torch.float64).eval()

    def _config_object(self, config: Mapping[str, Any]) -> Any:
        config_object = config_class(self.name).from_dict(json.loads(json.dumps(nested_config(config))))
        use_eager(config_object)
        return config_object

    @cached_property
    def _class(self) -> Any:
        return model_class(self.name, self.task)

    @cached_property
    def _tiny(self) -> _Stored:
        model = self._initialized(self.config)
        return _Stored(model, model.state_dict(), _converted(model), _saved(model))

    @cached_property
    def _needs_initialization(self) -> bool:
        """Whether a class computes values that its checkpoints leave out, such as tables of positions."""
        tiny = self._tiny
        names = tiny.disk if tiny.is_direct else tiny.memory  # a model that is not filled directly is loaded
        given = {tiny.memory[name].data_ptr() for name in names}
        if any(value.data_ptr() not in given for value in tiny.memory.values() if value.numel()):
            return True
        with everything_in(torch.float64), without_initialization():
            bare = self._class(self._config_object(self.config)).to(torch.float64)
        values = dict(bare.named_buffers())
        return any(
            name not in tiny.memory and not torch.equal(value, values[name])
            for name, value in tiny.model.named_buffers()
        )

    def stored_shapes(self, model: nn.Module) -> Shapes:
        if not self._tiny.is_convertible:
            return _shapes(_saved(model))
        shapes = _shapes(_converted(model))
        return {name: shape for name, shape in shapes.items() if name not in self._tiny.left_out}

    def disk_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        converted = _converted(model)
        if not self._tiny.is_convertible or _shapes(converted) != _shapes(self._tiny.converted):
            return _saved(model)
        return {name: converted[name].detach().clone() for name in self._tiny.disk}

    def fill(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        if not self._tiny.is_direct:
            return self._filled_by_conversion(config, tensors)
        model = self.reusable(config)
        _, unexpected = model.load_state_dict(dict(tensors), strict=False)
        if unexpected:
            raise VerifyError(f"the model has no {unexpected[:3]}")
        return model

    def _filled_by_conversion(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        """Fill a model whose loading converts tensors; what the conversion does is found once for the same shapes."""
        key = repr(_shapes(tensors))
        if key not in self._placements:
            self._placements[key] = find_placement(self._loaded(config, numbered(tensors)), tensors)
        placement = self._placements[key]
        if placement is None:
            return self._loaded(config, tensors)
        return placement.fill(self.reusable(config), tensors)

    @cached_property
    def _placements(self) -> dict[str, Placement | None]:
        return {}

    def _loaded(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
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
        return flat_parts(untagged(stored))

    def run(self, model: nn.Module) -> dict[str, Tensor]:
        inputs = reference_inputs(model, torch.Generator().manual_seed(0))
        with _computing():
            return named_outputs(model(**inputs.keywords))


@dataclass(frozen=True)
class _Stored:
    """The tiny model: in memory, as its class converts it for the disk, and as it saves it."""

    model: nn.Module
    memory: Mapping[str, Tensor]
    converted: Mapping[str, Tensor]
    disk: Mapping[str, Tensor]

    @cached_property
    def is_direct(self) -> bool:
        """Whether tensors have the same names and shapes on disk as in memory."""
        return _shapes(self.disk).items() <= _shapes(self.memory).items()

    @cached_property
    def is_convertible(self) -> bool:
        """Whether the conversion alone, without a save, shows what is on disk."""
        return _shapes(self.disk).items() <= _shapes(self.converted).items()

    @cached_property
    def left_out(self) -> frozenset[str]:
        """The names that a checkpoint leaves out, such as that of a tied readout."""
        return frozenset(self.converted) - frozenset(self.disk)


def _saved(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model that `save_pretrained` writes, in their order."""
    with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
        model.save_pretrained(folder)  # type: ignore[operator]
        tensors: dict[str, Tensor] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            order = [tensor.spec.name for tensor in read_header(file).tensors]
            loaded = load_file(file)
            tensors |= {name: loaded[name] for name in order}
    return tensors


@dataclass
class UserArchitecture(Architecture):
    """An architecture that the user's function builds."""

    name: str
    module: ModuleType
    build_model: Callable[[Config], nn.Module]
    config: Config

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        with everything_in(torch.float64):
            return self.build_model(dict(config)).to(torch.float64).eval()

    def disk_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        shares = shared_names(model)
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if name not in shares}

    def save(self, model: nn.Module, config: Mapping[str, Any], directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(self.disk_tensors(model), directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return directory

    def settings(self, stored: Mapping[str, Any]) -> Config:
        return dict(stored)

    def run(self, model: nn.Module) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        with _computing():
            inputs = user_inputs(self.module, self.config, None, generator, model)
            return named_outputs(model(*inputs.arguments, **inputs.keywords))


@dataclass
class LibraryArchitecture(Architecture):
    """An architecture that a library other than transformers builds; the keys of its config are dotted."""

    name: str
    package: Any
    library: Library
    config: Config

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        with everything_in(torch.float64):
            return self.library.build(self.package, nested_config(config)).to(torch.float64).eval()

    def disk_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def save(self, model: nn.Module, config: Mapping[str, Any], directory: Path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        save_file(self.disk_tensors(model), directory / self.library.weights[0], metadata={"format": "pt"})
        (directory / self.library.config).write_text(json.dumps(nested_config(config)), encoding="utf-8")
        return directory

    def settings(self, stored: Mapping[str, Any]) -> Config:
        return flat_config(stored)

    def run(self, model: nn.Module) -> dict[str, Tensor]:
        inputs = reference_inputs(model, torch.Generator().manual_seed(0), self.library)
        with _computing():
            return named_outputs(model(*inputs.arguments, **inputs.keywords))


@contextmanager
def _computing() -> Iterator[None]:
    """Compute in float64 without gradients. What a class draws at random, such as a mask, is the same each time."""
    with everything_in(torch.float64), torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def shared_names(model: nn.Module) -> dict[str, str]:
    """Return the further names of tensors that a model's state has under several names, each with the first one."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    shares = {}
    for name, tensor in model.state_dict().items():
        kept = first.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
        if kept != name and tensor.numel():
            shares[name] = kept
    return shares


def flat_config(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Return a config whose nested keys are dotted: `model_args.embed_dim`."""
    flat: Config = {}
    for key, value in config.items():
        flat |= flat_config(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def flat_parts(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Return a config of transformers whose keys are dotted within its parts: `text_config.hidden_size`."""
    flat: Config = {}
    for key, value in config.items():
        flat |= flat_parts(value, f"{prefix}{key}.") if is_part(value) else {f"{prefix}{key}": value}
    return flat


def nested_config(config: Mapping[str, Any]) -> Config:
    """Return the config that `flat_config` or `flat_parts` flattened."""
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


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def random_model(architecture: Architecture, seed: int = 0) -> nn.Module:
    """Build the tiny model of an architecture with random parameters and buffers."""
    return randomize(architecture.build(architecture.config), seed)
