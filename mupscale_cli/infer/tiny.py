"""Tiny random models of an architecture: every size small, and as many of them different as it allows.

A tiny model takes milliseconds to build, so that what a recipe says can be tried instead of argued.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer.vocabulary import HEADS, HIDDEN, KEPT, TOKEN_IDS, meaning
from mupscale_cli.verification.inputs import reference_inputs
from mupscale_cli.verification.precision import everything_in
from mupscale_cli.verification.transformers import import_transformers

Task = Literal["causal-lm", "masked-lm", "seq2seq-lm", "image-classification", "base"]
TASKS: dict[Task, str] = {
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING",
    "seq2seq-lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
    "base": "MODEL_MAPPING",
}
_LARGEST = 50_000_000  # parameters of what may still be called tiny
_SMALL = 16  # what is below this and has no meaning that we know stays as it is
_UNKNOWN_SIZES = (16, 24, 32, 12, 20)  # of keys whose names tell nothing
_MAX_LAYERS = 40
_KINDS_OF_LAYERS = (  # mixtures first, so that every kind of layer is seen
    ("linear_attention", "full_attention"),
    ("mamba", "attention"),
    ("mamba", "full_attention"),
    ("conv", "full_attention"),
    ("mamba", "hybrid"),
    ("sliding_attention", "full_attention"),
    ("full_attention",),
)


class TinyError(MupscaleError):
    """An architecture that cannot be built at a tiny size."""


@dataclass(frozen=True)
class TinyModel:
    """A random tiny model and what it was built from.

    Attributes:
        config: the config as `config.json` has it.
        model: in float64 and evaluation mode, with every parameter and buffer random.
        task: which of transformers' mappings its class is from.
    """

    config: dict[str, Any]
    model: nn.Module
    task: Task

    def save(self, directory: Path) -> Path:
        """Save it as transformers does; returns the directory."""
        self.model.save_pretrained(directory)  # type: ignore[operator]
        return directory


def config_class(model_type: str) -> Any:
    """The config class of a model type.

    Raises:
        TinyError: transformers knows none.
    """
    transformers = import_transformers()
    try:
        return transformers.CONFIG_MAPPING[model_type]
    except KeyError as error:
        raise TinyError(f"transformers {transformers.__version__} has no model type `{model_type}`") from error


def tiny_sizes(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Small sizes for the keys of a config, by their names; keys that count nothing are not in it.

    Args:
        keys: every key of the config and its value.
    """
    sizes: dict[str, Any] = {}
    used: dict[tuple[int, ...], int] = {}
    for key, value in keys.items():
        size = _size(key, value, used)
        if size is not None:
            sizes[key] = size
    return sizes


def _size(key: str, value: object, used: dict[tuple[int, ...], int]) -> Any:
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return None
    if TOKEN_IDS.match(key):
        return _token_id(key) if isinstance(value, int) and not isinstance(value, bool) else None
    if isinstance(value, (bool, float, str, list, dict)) or KEPT.match(key):
        return None
    sizes = meaning(key).sizes
    if sizes:
        if value is None and not re.search(r"head_dim|kv_heads|key_value_heads|inner", key):
            return None
        is_one = isinstance(value, int) and value <= 1 and meaning(key).counts not in ("vocab", "positions")
        if is_one and not key.endswith(("_group", "n_groups")):
            return None
    elif isinstance(value, int) and value > _SMALL:
        sizes = _UNKNOWN_SIZES
    else:
        return None
    index = used.get(sizes, 0)
    used[sizes] = index + 1
    return sizes[index % len(sizes)]


def _token_id(key: str) -> int:
    return {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}.get(key, 3)


def tiny_configs(
    model_type: str, flags: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Settings for a tiny config, the most telling first: sizes differ where the architecture may allow it.

    Args:
        model_type: a key of transformers' configs.
        flags: a config.json whose flags are kept and whose sizes are replaced.
        overrides: settings that are used as they are.
    """
    defaults = _defaults(model_type)
    keys = {**defaults, **{key: value for key, value in (flags or {}).items() if key in defaults}}
    kept = {key: value for key, value in (flags or {}).items() if key in defaults and _is_flag(value)}
    sizes = {**kept, **{key: size for key, size in tiny_sizes(keys).items() if kept.get(key) not in (0, 1)}}
    layers = next((sizes[key] for key in sizes if meaning(key).counts == "layers"), 4)
    count = next((defaults[key] for key in sizes if meaning(key).counts == "layers"), None)
    sizes.update(_lists(keys, count, layers))
    heads: list[dict[str, Any]] = [{}]
    explicit = [key for key in sizes if meaning(key).counts == "d"]
    if explicit:
        heads.append(dict.fromkeys(explicit, HIDDEN // HEADS))
        if any(defaults.get(key) is None for key in explicit):
            heads.append(dict.fromkeys(explicit))
    equal = {key: HEADS for key in sizes if meaning(key).counts == "kv"}
    heads += [{**variant, **equal} for variant in heads if equal]
    if "expand" in keys or "mamba_expand" in keys:
        heads.append(dict.fromkeys(explicit, 2 * HIDDEN // HEADS))
    if "attention_hidden_size" in sizes:
        heads.append({"attention_hidden_size": HIDDEN})
    others = [{}, *_structures(keys, sizes, layers)]
    seen = []
    for other in others:
        for variant in heads:
            settings = {**sizes, **variant, **other, **(overrides or {})}
            if settings not in seen:
                seen.append(settings)
                yield settings


def _lists(keys: Mapping[str, Any], count: object, layers: int) -> dict[str, Any]:
    """Lists with an entry for each layer, with one of each kind of entry among the few layers that are left."""
    found: dict[str, Any] = {}
    for key, value in keys.items():
        if isinstance(value, dict) and value and all(str(name).isdigit() for name in value):
            found[key] = {}  # exceptions for single layers, of which few are left
        if not isinstance(value, list) or len(value) != count or not value:
            continue
        if all(type(item) is int and item > _SMALL for item in value):
            found[key] = [(tiny_sizes({key: value[0]}).get(key, _SMALL))] * layers
        elif all(isinstance(item, (str, int)) for item in value):
            kinds = list(dict.fromkeys(value))
            found[key] = (kinds * layers)[:layers] if len(kinds) <= layers else value[:layers]
    return found


def _structures(keys: Mapping[str, Any], sizes: Mapping[str, Any], layers: int) -> Iterator[dict[str, Any]]:
    """Other structures that an architecture may ask for: kinds of layers, experts, a larger hidden size."""
    experts = {
        key: meaning(key).sizes[0]
        for key, value in keys.items()
        if value is None and meaning(key).sizes and re.search("expert|per_tok", key)
    }
    if experts:
        yield experts
    for key in keys:
        if re.fullmatch(r"layer_types|layers_block_type|layers_types|block_types", key):
            for kinds in _KINDS_OF_LAYERS:
                yield {key: (list(kinds) * layers)[:layers]}
                if experts:
                    yield {key: (list(kinds) * layers)[:layers], **experts}
        if re.fullmatch(r"attn_layer_ind\w+|full_attn_ids\w*|attn_layers", key):
            yield {key: [1]}
    if "rope_parameters" in keys:
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        yield {"rope_parameters": {kind: rope for kinds in _KINDS_OF_LAYERS for kind in kinds}}
    indexed = {
        key: next(iter(meaning(key).sizes), 2)
        for key, value in keys.items()
        if value is None and key.startswith("index")
    }
    if indexed:
        yield indexed
    languages = keys.get("languages")
    if "default_language" in keys and isinstance(languages, list) and languages:
        yield {"default_language": languages[0]}
    if "is_decoder" in keys or "is_decoder" in sizes:
        yield {"is_decoder": True}
    yield {"is_decoder": True}
    hidden = [key for key, size in sizes.items() if size == HIDDEN]
    yield dict.fromkeys(hidden, 64)
    counts = {key: keys[key] for key in sizes if meaning(key).counts == "layers" and type(keys[key]) is int}
    lists = {key: value for key, value in keys.items() if isinstance(value, list)}
    if counts and all(value <= _MAX_LAYERS for value in counts.values()):
        yield {**counts, **lists}


def _is_flag(value: object) -> bool:
    return isinstance(value, (bool, str, float)) or value in (0, 1)


def _defaults(model_type: str) -> dict[str, Any]:
    """The keys of a config with their defaults, without those that every config has."""
    transformers = import_transformers()
    common = set(transformers.PretrainedConfig().to_dict()) - {
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "decoder_start_token_id",
        "tie_word_embeddings",
    }
    try:
        values = config_class(model_type)().to_dict()
    except TinyError:
        raise
    except Exception as error:  # a config may ask for anything
        raise TinyError(f"the config of `{model_type}` cannot be made: {error}") from error
    return {key: value for key, value in values.items() if key not in common}


def model_class(model_type: str, task: Task) -> Any:
    """The class that transformers builds for a model type and a task.

    Raises:
        TinyError: there is none.
    """
    transformers = import_transformers()
    mapping = getattr(transformers, TASKS[task])
    try:
        found = mapping[config_class(model_type)]
    except KeyError as error:
        raise TinyError(f"transformers has no `{model_type}` for {task}") from error
    return found[0] if isinstance(found, (tuple, list)) else found


def task_of(model_type: str, architectures: object = None) -> Task:
    """The task of a class that a config names, else the first that transformers has a class for.

    Raises:
        TinyError: it has none.
    """
    transformers = import_transformers()
    made = config_class(model_type)
    named = architectures[0] if isinstance(architectures, list) and architectures else None
    available = [task for task, mapping in TASKS.items() if made in getattr(transformers, mapping)]
    for task in available:
        if named == model_class(model_type, task).__name__:
            return task
    if not available:
        raise TinyError(f"transformers has no `{model_type}` for any of {', '.join(TASKS)}")
    return available[0]


def use_eager(config: Any) -> None:
    """Have a config's model computed step by step, which is what can be lifted to float64."""
    for name in ("_attn_implementation", "_experts_implementation"):
        setattr(config, name, "eager")


def build(model_type: str, task: Task, settings: Mapping[str, Any], seed: int = 0) -> TinyModel:
    """Build a random model from settings of its config.

    Raises:
        TinyError: it would not be tiny, as where the sizes of an image encoder stay what they are.
        Exception: whatever transformers raises for settings that it cannot use.
    """
    with everything_in(torch.float64):
        config = config_class(model_type)(**settings)
        use_eager(config)
        _check_tiny(model_type, task, config)
        model = model_class(model_type, task)(config)
    randomise(model.to(torch.float64), seed)
    return TinyModel(config.to_dict(), model.eval(), task)


def _check_tiny(model_type: str, task: Task, config: Any) -> None:
    try:
        with torch.device("meta"):
            model = model_class(model_type, task)(copy.deepcopy(config))
    except Exception:  # noqa: BLE001 (some look at values while they are built; they are built for real then)
        return
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > _LARGEST:
        raise TinyError(
            f"a tiny `{model_type}` cannot be built: with every size that is known made small it still has "
            f"{count / 1e6:.0f} M parameters",
            hint="try the recipe on a small checkpoint of your own: `mupscale recipes check FILE CKPT`",
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
    """A random tiny model of a model type: sizes of tens, everything random.

    Args:
        model_type: as in config.json.
        task: which head it has.
        flags: a config.json whose flags (biases, ties, activation) are kept and whose sizes are replaced.
        overrides: settings that are used as they are.
        seed: of the random values.
        runs: whether it must run on random inputs.

    Raises:
        TinyError: it cannot be built, or not run.

    Example:
        >>> tiny_model("llama").save(Path("tiny"))  # doctest: +SKIP
    """
    model_class(model_type, task)
    first: Exception | None = None
    for settings in tiny_configs(model_type, flags, overrides):
        try:
            tiny = build(model_type, task, settings, seed)
            if runs:
                run(tiny.model)
        except TinyError:
            raise  # other variants are no smaller
        except Exception as error:  # noqa: BLE001 (another variant of the settings may do)
            first = first or error
        else:
            return tiny
    raise TinyError(f"a tiny `{model_type}` cannot be built: {str(first).splitlines()[0] if str(first) else first!r}")


def run(model: nn.Module, seed: int = 0) -> Any:
    """What a reference model returns for random inputs, in float64.

    Raises:
        Exception: whatever the model raises.
    """
    with everything_in(torch.float64), torch.no_grad():
        inputs = reference_inputs(model, torch.Generator().manual_seed(seed))
        return model(**inputs.keywords)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and floating-point buffer of the state dict random values, gains and biases too.

    Matrices get values of size 1/sqrt(fan-in), so that activations stay near 1; what must be
    positive (running variances) is.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / max(fan_in, 1) ** 0.5
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model
