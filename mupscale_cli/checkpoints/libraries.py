"""The libraries whose checkpoints mupscale reads: what each names its files, and how it builds a model from a config.

Nothing here is imported from a library before it is needed, and no other module asks which library a checkpoint is for.
"""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mupscale_cli.checkpoints.config import untagged
from mupscale_cli.errors import install_extra

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Library:
    """A library that loads checkpoints.

    Attributes:
        name: the name of its Python package.
        extra: the extra of mupscale that installs it; None if pip installs it by itself.
        key: a config key that only its configs have.
        build: makes a model with random weights, given the imported package and a config; any error means that the
            config is impossible.
        load: makes a model with the weights of a folder that contains only its config and its weights, given the
            imported package and the folder. None for transformers: what `verification` loads with it may stay on disk.
        groups: names the parameters of each group, in the order in which the library's own training script gives them
            to an optimizer with two groups; None if it has no such script.
        config: the name of its config file.
        weights: the names of its weight file that are read; the first one is written.
        has_shards: whether it reads weights that are divided into several files with an index.
        distribution: what pip installs without an extra. Default: its name.
    """

    name: str
    extra: str | None
    key: str
    build: Callable[[Any, Mapping[str, Any]], nn.Module]
    load: Callable[[Any, Path], nn.Module] | None = None
    groups: Callable[[Any, nn.Module], Sequence[Sequence[str]]] | None = None
    config: str = "config.json"
    weights: tuple[str, ...] = ("model.safetensors",)
    has_shards: bool = True
    distribution: str | None = None

    @property
    def install(self) -> str:
        """The hint that says how to install it."""
        return f"`pip install {self.distribution or self.name}`" if self.extra is None else install_extra(self.extra)

    @property
    def index(self) -> str:
        """The name of the index of shards that is written."""
        return self.indices[0]

    @property
    def indices(self) -> tuple[str, ...]:
        """The names of the indices of shards that are read."""
        return tuple(map(_index_of, self.weights))

    @property
    def shard_pattern(self) -> str:
        """The names of weight files, with the place where a shard's number goes."""
        return self.weights[0].replace(".", "{suffix}.", 1)

    def package(self) -> Any:
        """Import the library.

        Raises:
            ImportError: it is not installed.
        """
        return importlib.import_module(self.name)


def _index_of(weights: str) -> str:
    """Return the name of the index of a weight file's shards; a variant (`model.fp16.safetensors`) is at its end."""
    stem, *variant, suffix = weights.split(".")
    return ".".join((stem, suffix, "index", *variant, "json"))


def _transformers_model(transformers: Any, config: Mapping[str, Any]) -> nn.Module:
    name = next(iter(config.get("architectures") or ()), None)
    model_class = getattr(transformers, str(name), None)
    is_model = isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    if model_class is None or not is_model:
        raise LookupError(f"`architectures` in config.json gives {name}, which is no model class of transformers")
    model: nn.Module = model_class(model_class.config_class.from_dict(untagged(config)))
    return model


def _trainer_groups(transformers: Any, model: nn.Module) -> Sequence[Sequence[str]]:
    """Return the groups of the Trainer: what it decays, then the rest."""
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if name in decayed], [name for name in names if name not in decayed]


def _timm_model(timm: Any, config: Mapping[str, Any]) -> nn.Module:
    with _saved(config, "config.json") as folder:
        model: nn.Module = timm.create_model(f"local-dir:{folder}")
    return model


def _load_timm_model(timm: Any, folder: Path) -> nn.Module:
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model


def _timm_groups(timm: Any, model: nn.Module) -> Sequence[Sequence[str]]:
    """Return the groups of timm's training script: what it does not decay, then the rest."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    optim = importlib.import_module(f"{timm.__name__}.optim")
    groups = optim.param_groups_weight_decay(model, no_weight_decay_list=undecayed)
    return [[names[id(parameter)] for parameter in group["params"]] for group in groups]


def _open_clip_model(open_clip: Any, config: Mapping[str, Any]) -> nn.Module:
    with _saved(config, "open_clip_config.json") as folder:
        return _load_open_clip_model(open_clip, Path(folder))


def _load_open_clip_model(open_clip: Any, folder: Path) -> nn.Module:
    """Load a model, or create one if the folder has no weights; a forward pass also returns the logits."""
    device = importlib.import_module("torch").get_default_device()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # that a folder without weights has none
    try:
        model: nn.Module = open_clip.create_model(
            f"local-dir:{folder}", device=device, pretrained_text=False, output_dict=True
        )
    finally:
        logging.disable(disabled)

    def add_logits(_model: nn.Module, _inputs: Any, output: dict[str, Any]) -> dict[str, Any]:
        logits = output["logit_scale"] * output["image_features"] @ output["text_features"].T
        return {"logits": logits + output.get("logit_bias", 0), **output}

    model.register_forward_hook(add_logits)
    return model


def _diffusers_class(diffusers: Any, config: Mapping[str, Any]) -> Any:
    return getattr(diffusers, str(config["_class_name"]))


def _diffusers_model(diffusers: Any, config: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = _diffusers_class(diffusers, config).from_config(dict(config))
    return model


def _load_diffusers_model(diffusers: Any, folder: Path) -> nn.Module:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    diffusers.utils.logging.set_verbosity_error()
    model: nn.Module
    model, info = _diffusers_class(diffusers, config).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if missing := info.get("missing_keys"):  # diffusers would leave them random
        raise ValueError(f"the weights lack {', '.join(sorted(missing)[:3])}")
    return model


class _saved(tempfile.TemporaryDirectory[str]):  # noqa: N801 (a context manager)
    """A folder with a config, for libraries that read configs only from disk."""

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        super().__init__(prefix="mupscale-")
        Path(self.name, name).write_text(json.dumps(dict(config)), encoding="utf-8")


TRANSFORMERS = Library("transformers", "hf", "model_type", _transformers_model, groups=_trainer_groups)
DIFFUSERS = Library(
    "diffusers",
    "diffusers",
    "_class_name",
    _diffusers_model,
    _load_diffusers_model,
    weights=("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
)
LIBRARIES = (
    TRANSFORMERS,
    Library("timm", "timm", "architecture", _timm_model, _load_timm_model, _timm_groups, has_shards=False),
    Library(
        "open_clip",
        "open-clip",
        "model_cfg",
        _open_clip_model,
        _load_open_clip_model,
        config="open_clip_config.json",
        weights=("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
        has_shards=False,
    ),
    DIFFUSERS,
)
CONFIGS = tuple(dict.fromkeys(library.config for library in LIBRARIES))
WEIGHTS = tuple(dict.fromkeys(name for library in LIBRARIES for name in library.weights))
INDICES = tuple(map(_index_of, WEIGHTS))


def config_beside(weights: str, names: Container[str]) -> str | None:
    """Return the name of the config of a weight file: that of its library, or else the first one that exists.

    Args:
        weights: the name of the weight file.
        names: the names of the files beside it.
    """
    own = (library.config for library in LIBRARIES if weights in library.weights)
    return next((name for name in (*own, *CONFIGS) if name in names), None)


def library_of(config: Mapping[str, Any] | None) -> Library:
    """Return the library that a config is for: the first whose key it has, or else transformers."""
    return next((library for library in LIBRARIES if library.key in (config or {})), TRANSFORMERS)
