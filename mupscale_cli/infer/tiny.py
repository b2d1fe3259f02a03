"""Tiny random models of an architecture. They are built in milliseconds, so a recipe can be tested by experiment."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mupscale_cli.infer.errors import TinyError, first_line
from mupscale_cli.infer.tiny_configs import config_class, tiny_configs
from mupscale_cli.verification.inputs.libraries import reference_inputs
from mupscale_cli.verification.precision import everything_in
from mupscale_cli.verification.transformers import import_transformers

Task = str  # one of these, or the name of a class of transformers
TASKS: dict[Task, str] = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING",
    "seq2seq-lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "base": "MODEL_MAPPING",
}
_BY_HAND = (
    "write a recipe, whose `parts` may name a recipe for each part (`mupscale help language`), and try it on a small "
    "checkpoint of your own: `mupscale recipes check FILE CKPT`"
)
_MAX_PARAMETERS = 50_000_000
_SECONDS = 10.0  # computing time to find settings that work


@dataclass(frozen=True)
class TinyModel:
    """A tiny random model and its config.

    Attributes:
        config: the config, as in config.json.
        model: the model in float64 and evaluation mode, with random parameters and buffers.
    """

    config: dict[str, Any]
    model: nn.Module

    def save(self, directory: Path) -> Path:
        """Save the model with `save_pretrained` and return the directory."""
        self.model.save_pretrained(directory)  # type: ignore[operator]
        return directory


def model_class(model_type: str, task: Task) -> Any:
    """Return the class that transformers builds for a model type and a task.

    Raises:
        TinyError: transformers has no such class.
    """
    transformers = import_transformers()
    if task not in TASKS:
        return getattr(transformers, task)
    mapping = getattr(transformers, TASKS[task])
    try:
        classes = mapping[config_class(model_type)]
    except KeyError as error:
        raise TinyError(f"transformers has no `{model_type}` model for the task {task}") from error
    return classes[0] if isinstance(classes, (tuple, list)) else classes


def task_of(model_type: str, architectures: object = None) -> Task:
    """Return the task of the class that a config's `architectures` names, or else the model type's first task.

    A class of transformers that has none of the tasks stands for itself.

    Raises:
        TinyError: transformers has no class for any task.
    """
    transformers = import_transformers()
    config = config_class(model_type)
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    available = [task for task, mapping in TASKS.items() if config in getattr(transformers, mapping)]
    for task in available:
        if named == model_class(model_type, task).__name__:
            return task
    others = _classes_of(model_type)
    for name in (named, *(() if available else others)):
        if isinstance(name, str) and getattr(getattr(transformers, name, None), "config_class", None) is config:
            return name
    if not available:
        raise TinyError(
            f"transformers has no class that builds `{model_type}` from its config alone",
            hint="write a recipe (`mupscale help language`), and name a function that builds the model for its proof: "
            "`mupscale recipes infer FILE:FUNCTION`",
        )
    return available[0]


def _classes_of(model_type: str) -> list[str]:
    """Return the classes of a model type for all tasks that the mappings of transformers have it for, by task."""
    from transformers.models.auto import modeling_auto

    found = [
        names[model_type] for key, names in vars(modeling_auto).items() if _is_mapping(key) and model_type in names
    ]
    return [name for names in found for name in ((names,) if isinstance(names, str) else names)]


def _is_mapping(name: str) -> bool:
    return name.startswith("MODEL_") and name.endswith("MAPPING_NAMES")


def use_eager(config: Any) -> None:
    """Select the eager implementations, which can compute in float64."""
    for name in ("_attn_implementation", "_experts_implementation"):
        setattr(config, name, "eager")


@contextmanager
def without_initialization() -> Iterator[None]:
    """Build models of transformers without the values that their classes give them, which takes most of the time."""
    import_transformers()
    from transformers.initialization import no_init_weights

    with no_init_weights():
        yield


def build(model_type: str, task: Task, settings: Mapping[str, Any], seed: int = 0) -> TinyModel:
    """Build a random model from settings of its config.

    Raises:
        TinyError: the model would be large, for example because the config fixes the sizes of an image encoder.
        Exception: transformers rejects the settings.
    """
    with everything_in(torch.float64):
        config = config_class(model_type)(**settings)
        use_eager(config)
        _check_tiny(model_type, task, config)
        model = model_class(model_type, task)(config)
    randomize(model.to(torch.float64), seed)
    return TinyModel(config.to_dict(), model.eval())


def _check_tiny(model_type: str, task: Task, config: Any) -> None:
    try:
        with torch.device("meta"):
            model = model_class(model_type, task)(copy.deepcopy(config))
    except Exception:  # noqa: BLE001 (some models read tensor values in their constructor; they are not checked)
        return
    count = sum(parameter.numel() for parameter in model.parameters())
    if count <= _MAX_PARAMETERS:
        return
    parts = [
        f"`{key}` ({part.model_type})" for key in sorted(config.sub_configs) if (part := getattr(config, key, None))
    ]
    if parts:
        raise TinyError(
            f"cannot build a tiny `{model_type}`: the sizes in its parts {', '.join(parts)} cannot be reduced, and "
            f"it has {count / 1e6:.0f} M parameters",
            hint=_BY_HAND,
        )
    raise TinyError(
        f"cannot build a tiny `{model_type}`: with every known size reduced it still has "
        f"{count / 1e6:.0f} M parameters",
        hint=_BY_HAND,
    )


def tiny_model(
    model_type: str,
    task: Task = "causal-lm",
    *,
    flags: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    runs: bool = True,
) -> TinyModel:
    """Build a tiny random model of a model type, with widths below 100.

    Args:
        model_type: the model type, as in config.json.
        task: the task, which selects the model's head.
        flags: a config.json; its flags (biases, ties, activation) are kept and its sizes replaced.
        overrides: settings that replace all others.
        seed: random seed for the parameters.
        runs: require that the model runs on random inputs.

    Raises:
        TinyError: the model cannot be built or run.

    Example:
        >>> tiny_model("llama").save(Path("tiny"))  # doctest: +SKIP
    """
    model_class(model_type, task)
    failed: dict[str, Exception] = {}
    end = time.process_time() + _SECONDS
    for settings in tiny_configs(model_type, flags, overrides):
        stage = "be built"
        try:
            tiny = build(model_type, task, settings, seed)
            stage = "run on random inputs"
            if runs:
                run(tiny.model)
        except TinyError:
            raise  # other settings are no smaller
        except Exception as error:  # noqa: BLE001 (transformers raises anything; other settings may work)
            failed.setdefault(stage, error)
            if time.process_time() > end:
                break
        else:
            return tiny
    last, problem = max(failed.items())  # those that can be built say more
    raise TinyError(
        f"cannot make a tiny `{model_type}` to experiment with: with small sizes its class in transformers cannot "
        f"{last}: {first_line(problem)}",
        hint=f"install what it needs, or {_BY_HAND}" if isinstance(problem, ImportError) else _BY_HAND,
    )


def run(model: nn.Module, seed: int = 0) -> Any:
    """Run a transformers model on random inputs in float64 and return its output.

    Raises:
        Exception: the model fails.
    """
    with everything_in(torch.float64), torch.no_grad():
        inputs = reference_inputs(model, torch.Generator().manual_seed(seed))
        return model(**inputs.keywords)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every floating-point parameter and buffer with random values, including gains and biases.

    Matrices get the standard deviation 1/sqrt(fan_in), which keeps activations near 1. Running variances are
    positive.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                fan_in = math.prod(tensor.shape[1:])
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / max(fan_in, 1) ** 0.5
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model
