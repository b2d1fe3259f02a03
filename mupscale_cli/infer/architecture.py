"""An architecture as something that builds models from configs: transformers' or the user's own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mupscale_cli.checkpoints.header import read_header
from mupscale_cli.errors import VerifyError
from mupscale_cli.infer.tiny import Task, config_class, model_class, randomise, use_eager
from mupscale_cli.verification.inputs import reference_inputs, user_inputs
from mupscale_cli.verification.models import output_tensor
from mupscale_cli.verification.precision import everything_in

Config = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]


class Architecture(Protocol):
    """What drafting a recipe needs of an architecture.

    Attributes:
        name: for people.
        config: of the tiny model, as config.json has it.
    """

    name: str
    config: Config

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        """A model in float64 and evaluation mode; whatever it raises, the config is not possible."""

    def shapes(self, config: Mapping[str, Any]) -> Shapes:
        """Names and shapes of the tensors on disk."""

    def stored(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors as they are on disk."""

    def fill(self, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        """The model of a config with the tensors of a disk in it; `model` is one that may be used again."""

    def save(self, model: nn.Module, config: Mapping[str, Any], directory: Path) -> Path:
        """A checkpoint; returns what `mupscale widen` is given."""

    def run(self, model: nn.Module) -> Tensor:
        """What the model computes for inputs that depend on the architecture alone."""


@dataclass
class Reference:
    """An architecture of transformers."""

    name: str
    task: Task
    config: Config
    direct: bool = False  # the disk has the names and shapes of the memory

    def __post_init__(self) -> None:
        model = self.build(self.config)
        memory = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        disk = {name: tuple(tensor.shape) for name, tensor in self.stored(model).items()}
        self.direct = all(memory.get(name) == shape for name, shape in disk.items())

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        with everything_in(torch.float64):
            model: nn.Module = self._class(self._config(config))
        return model.to(torch.float64).eval()

    def _config(self, config: Mapping[str, Any]) -> Any:
        made = config_class(self.name).from_dict(json.loads(json.dumps(config)))
        use_eager(made)
        return made

    @property
    def _class(self) -> Any:
        return model_class(self.name, self.task)

    def shapes(self, config: Mapping[str, Any]) -> Shapes:
        if not self.direct:
            return {name: tuple(tensor.shape) for name, tensor in self.stored(self.build(config)).items()}
        try:
            with torch.device("meta"):
                model = self._class(self._config(config))
        except (RuntimeError, NotImplementedError, TypeError):
            model = self.build(config)
        base = self._names
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return {name: shape for name, shape in shapes.items() if name in base or name not in self._memory}

    @property
    def _names(self) -> frozenset[str]:
        self._remember()
        return self.__dict__["_disk_names"]  # type: ignore[no-any-return]

    @property
    def _memory(self) -> frozenset[str]:
        self._remember()
        return self.__dict__["_memory_names"]  # type: ignore[no-any-return]

    def _remember(self) -> None:
        if "_disk_names" not in self.__dict__:
            model = self.build(self.config)
            self.__dict__["_disk_names"] = frozenset(self.stored(model))
            self.__dict__["_memory_names"] = frozenset(model.state_dict())

    def stored(self, model: nn.Module) -> dict[str, Tensor]:
        with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
            model.save_pretrained(folder)  # type: ignore[operator]
            tensors: dict[str, Tensor] = {}
            for file in sorted(Path(folder).glob("*.safetensors")):
                order = [tensor.spec.name for tensor in read_header(file).tensors]
                loaded = load_file(file)
                tensors |= {name: loaded[name] for name in order}
        return tensors

    def fill(self, model: nn.Module, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        if self.direct:
            _, unexpected = model.load_state_dict(dict(tensors), strict=False)
            if unexpected:
                raise VerifyError(f"the model has no {unexpected[:3]}")
            return model
        with tempfile.TemporaryDirectory(prefix="mupscale-") as folder:
            save_file(
                {name: tensor.clone() for name, tensor in tensors.items()},
                Path(folder) / "model.safetensors",
                metadata={"format": "pt"},
            )
            self._write_config(config, Path(folder))
            loaded, info = self._class.from_pretrained(
                folder,
                dtype=torch.float64,
                attn_implementation="eager",
                experts_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
            )
        for problem in ("missing_keys", "mismatched_keys"):
            if info.get(problem):
                raise VerifyError(f"{problem} {sorted(map(str, info[problem]))[:3]}")
        filled: nn.Module = loaded.to(torch.float64).eval()
        return filled

    def _write_config(self, config: Mapping[str, Any], directory: Path) -> None:
        made = self._config(config)
        made.architectures = [self._class.__name__]
        made.save_pretrained(directory)

    def save(self, model: nn.Module, config: Mapping[str, Any], directory: Path) -> Path:
        del config  # the model has it
        model.save_pretrained(directory)  # type: ignore[operator]
        return directory

    def run(self, model: nn.Module) -> Tensor:
        inputs = reference_inputs(model, torch.Generator().manual_seed(0))
        with everything_in(torch.float64), torch.no_grad():
            return output_tensor(model(**inputs.keywords))


@dataclass
class Own:
    """An architecture that the user's function builds."""

    name: str
    module: ModuleType
    make: Callable[[Config], nn.Module]
    config: Config

    def build(self, config: Mapping[str, Any]) -> nn.Module:
        with everything_in(torch.float64):
            return self.make(dict(config)).to(torch.float64).eval()

    def shapes(self, config: Mapping[str, Any]) -> Shapes:
        return {name: tuple(tensor.shape) for name, tensor in self.stored(self.build(config)).items()}

    def stored(self, model: nn.Module) -> dict[str, Tensor]:
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
        save_file(self.stored(model), directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return directory

    def run(self, model: nn.Module) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        with everything_in(torch.float64), torch.no_grad():
            return output_tensor(self._call(model, generator))

    def _call(self, model: nn.Module, generator: torch.Generator) -> Any:
        inputs = user_inputs(self.module, self.config, None, generator, model)
        return model(*inputs.arguments, **inputs.keywords)


def random_model(architecture: Architecture, seed: int = 0) -> nn.Module:
    """The tiny model of an architecture, everything random."""
    return randomise(architecture.build(architecture.config), seed)
