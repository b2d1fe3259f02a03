"""Configs for tiny models: every size small, and sizes different from each other where the architecture allows it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Container, Iterator, Mapping
from itertools import islice
from typing import Any

from mupscale_cli.infer.errors import TinyError
from mupscale_cli.infer.vocabulary import HEADS, HIDDEN, KEPT, NO_WIDTHS, TOKEN_IDS, meaning, names_blocks
from mupscale_cli.verification.transformers import import_transformers

_SMALL = 16  # smaller values of unknown keys stay
_UNKNOWN_SIZES = (16, 24, 32, 12, 20)  # for large values of unknown keys
_MAX_LAYERS = 40
_MAX_WIDTH = 100  # of a tiny model
_MOST_HEADS = 8  # settings for the heads of a model
_MAX_OF_PARTS = 40  # settings of one part that are tried
_SMALLEST_WIDTHS = (8, 32)  # where all widths stay in proportion: norms may have 32 groups
_COUNTED = frozenset({"vocab", "positions", "layers"})
_NO_WIDTH = re.compile(
    r".*(vocab|token|_ids?$|position|image|patch|window|kernel|stride|depth|layer|seq|length|label|seed|queries|points|"
    r"frames|freq|divisor|stage|size_list|anchor|max_|min_|_resolution|num_denoising|heads).*"
)
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
_LAYER_KINDS = (  # mixtures come first, so that the tiny model has every kind of layer
    ("linear_attention", "full_attention"),
    ("mamba", "attention"),
    ("mamba", "full_attention"),
    ("conv", "full_attention"),
    ("mamba", "hybrid"),
    ("sliding_attention", "full_attention"),
    ("full_attention",),
)
# The frequencies of a head for time, height and width, where 12, 8, 6 or 4 of its dimensions rotate.
_ROPE_SECTIONS = ((2, 2, 2), (2, 1, 1), (1, 1, 1), (1, 1, 0))


def config_class(model_type: str) -> Any:
    """Return the config class of a model type.

    Raises:
        TinyError: transformers does not have this model type.
    """
    transformers = import_transformers()
    try:
        return transformers.CONFIG_MAPPING[model_type]
    except KeyError as error:
        raise TinyError(
            f"transformers {transformers.__version__} has no model type `{model_type}`",
            hint="for a class of your own, name a function that makes it: `mupscale recipes infer FILE:FUNCTION`",
        ) from error


def default_config(model_type: str) -> dict[str, Any]:
    """Return the defaults of a model type's config, without the keys that every config has.

    Raises:
        TinyError: the model type is unknown, or its config has no defaults.
    """
    config = config_class(model_type)
    try:
        values = config().to_dict()
    except Exception as error:  # configs raise anything
        raise TinyError(f"cannot create a default config of `{model_type}`: {error}") from error
    return _without_common(values)


def _without_common(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config without the keys that every config has."""
    common = set(import_transformers().PretrainedConfig().to_dict()) - {*_TOKENS, "tie_word_embeddings"}
    return {key: value for key, value in config.items() if key not in common}


def tiny_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Choose a small size for every key of a config whose name or value shows that it is a size.

    Of several keys with the same meaning, each takes the next size, so that they differ.
    """
    sizes: dict[str, Any] = {}
    used: dict[tuple[int, ...], int] = {}
    for key, value in config.items():
        size = _tiny_size(key, value, used)
        if size is not None:
            sizes[key] = size
    return sizes


def _tiny_size(key: str, value: object, used: dict[tuple[int, ...], int]) -> Any:
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return None
    if TOKEN_IDS.match(key):
        return _TOKENS.get(key, 3) if isinstance(value, int) and not isinstance(value, bool) else None
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


def tiny_configs(
    model_type: str, flags: Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield settings for a tiny config, those with the most distinct sizes first.

    Args:
        model_type: a model type of transformers.
        flags: a config.json; its flags are kept and its sizes replaced.
        overrides: settings that replace all others.

    Raises:
        TinyError: the model type is unknown, or its config has no defaults.
    """
    seen = []
    defaults = default_config(model_type)
    full = {**defaults, **{key: value for key, value in (flags or {}).items() if key in defaults}}
    own_settings = _settings(defaults, flags or {})
    first = next(own_settings)
    alike = (_in_proportion(first, full, least) for least in _SMALLEST_WIDTHS)
    usual = 0 if any(map(is_part, full.values())) else _MOST_HEADS  # a model without parts agrees with itself
    for own in itertools.chain([first], islice(own_settings, usual), alike, own_settings):
        settings = {**own, **(overrides or {})}
        settings |= _widths_of_stages(full, {**defaults, **settings})
        if settings not in seen:
            seen.append(settings)
            yield settings


def _in_proportion(tiny: Mapping[str, Any], full: Mapping[str, Any], least: int) -> dict[str, Any]:
    """Return settings whose widths are those in full size, all divided by one number.

    Parts of a composite agree on widths, such as the channels that one gives and another takes, under any names.
    """
    divisor = 1 << (max(min(_widths(full), default=least) // least, 1).bit_length() - 1)
    return _divided(tiny, full, divisor)


def _widths(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if is_part(value):
            yield from _widths(value)
        elif _is_wide(key, value):
            yield from value if isinstance(value, list) else [value]


def _divided(tiny: Mapping[str, Any], full: Mapping[str, Any], divisor: int) -> dict[str, Any]:
    settings = dict(tiny)
    for key, value in full.items():
        if is_part(value):
            small = settings[key] if is_part(settings.get(key)) else {"model_type": value["model_type"]}
            settings[key] = _divided(small, _without_common(value), divisor)
        elif _is_wide(key, value):
            settings[key] = [each // divisor for each in value] if isinstance(value, list) else value // divisor
    return settings


def _is_wide(key: str, value: object) -> bool:
    """Return whether a key has a width, or a list of widths, of a model in full size."""
    values = value if isinstance(value, list) else [value]
    sizes = bool(values) and all(type(each) is int and each > _SMALL for each in values)
    return sizes and _NO_WIDTH.fullmatch(key) is None and meaning(key).counts not in _COUNTED


def _widths_of_stages(full: Mapping[str, Any], tiny: Mapping[str, Any]) -> dict[str, int]:
    """Return the widths that equal that of a stage in full size, with what this stage has in a tiny config.

    Between equal widths, classes leave out a projection: the tiny model has the same tensors only if they stay equal.
    """
    widths: dict[str, int] = {}
    for key, (other, stage) in equal_widths(full).items():
        small = tiny.get(other)
        if isinstance(small, (list, tuple)) and len(small) == len(full[other]):
            width = small[stage]
            if type(width) is int and width <= _MAX_WIDTH:
                widths[key] = width
    return widths


def equal_widths(config: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Return the keys of a config that have the width of a stage, each with the key of its list and its index."""
    stages = {
        key: list(value)
        for key, value in config.items()
        if isinstance(value, (list, tuple)) and not NO_WIDTHS.fullmatch(key)
    }
    return {
        key: (other, widths.index(value))
        for key, value in config.items()
        if type(value) is int and HIDDEN in meaning(key).sizes
        for other, widths in stages.items()
        if value in widths
    }


def is_part(value: object) -> bool:
    """Return whether the value of a config's key is the config of a part, such as that of an image encoder."""
    return isinstance(value, Mapping) and "model_type" in value


def _settings(defaults: Mapping[str, Any], flags: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield settings for a tiny config with some defaults: first all parts alike, then one part after another."""
    parts = {key: flags[key] if is_part(flags.get(key)) else value for key, value in defaults.items() if is_part(value)}
    own = _own_settings(defaults, flags)
    if not parts:
        yield from own
        return
    choices = {"": list(islice(own, _MAX_OF_PARTS))}
    for key, part in parts.items():
        model_type = part["model_type"]
        same = model_type == defaults[key]["model_type"]
        base = _without_common(defaults[key]) if same else default_config(model_type)
        choices[key] = [{"model_type": model_type, **some} for some in islice(_settings(base, part), _MAX_OF_PARTS)]
    first = {key: some[0] for key, some in choices.items()}
    yield _joined(first)
    for index in range(1, _MAX_OF_PARTS):
        yield _joined({key: some[index] if index < len(some) else some[0] for key, some in choices.items()})
        for key, some in choices.items():
            if index < len(some):
                yield _joined({**first, key: some[index]})


def _joined(settings: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the settings of a config and of its parts, given by key, as those of one config."""
    return {**settings[""], **{key: part for key, part in settings.items() if key}}


def _own_settings(defaults: Mapping[str, Any], flags: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield settings for the keys of a tiny config that are not parts."""
    known = {key: value for key, value in flags.items() if key in defaults and not is_part(value)}
    config = {**defaults, **known}
    kept_flags = {key: value for key, value in known.items() if _is_flag(value) or is_small_constant(key, value)}
    sizes = {
        **kept_flags,
        **{key: size for key, size in tiny_sizes(config).items() if kept_flags.get(key) not in (0, 1)},
    }
    num_layers = next((sizes[key] for key in sizes if meaning(key).counts == "layers"), 4)
    full_depth = next((defaults[key] for key in sizes if meaning(key).counts == "layers"), None)
    sizes.update(_layer_lists(config, full_depth, num_layers))
    sizes.update(_outputs(config, num_layers))
    own_depth = next((config[key] for key in sizes if meaning(key).counts == "layers"), None)
    numbers = _block_numbers(config, own_depth, num_layers)
    head_settings = list(_head_settings(config, defaults, sizes))
    lists = _lists_of_counts(known, sizes)
    for structure in (*filter(None, [numbers]), {}, *filter(None, [lists]), *_structures(config, sizes, num_layers)):
        for heads in head_settings:
            yield {**sizes, **heads, **structure}


def _lists_of_counts(config: Mapping[str, Any], sizes: Container[str]) -> dict[str, list[int]]:
    """Return the lists of numbers in a config, with small numbers: flags may say how many of them a list has."""
    return {
        key: [min(item, _SMALL) for item in value]
        for key, value in config.items()
        if key not in sizes and isinstance(value, list) and value and all(type(item) is int for item in value)
    }


def is_small_constant(key: str, value: object) -> bool:
    """Return whether a config's key has a small number that is no size, such as a stride: layouts may contain it."""
    return type(value) is int and value <= _SMALL and not meaning(key).sizes and not TOKEN_IDS.match(key)


def _is_flag(value: object) -> bool:
    return isinstance(value, (bool, str, float)) or value in (0, 1)


def _head_settings(
    config: Mapping[str, Any], defaults: Mapping[str, Any], sizes: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Yield alternatives for the number and size of heads, starting with the tiny sizes as they are."""
    head_sizes = [key for key in sizes if meaning(key).counts == "d"]
    settings: list[dict[str, Any]] = [{}]
    if head_sizes:
        settings.append(dict.fromkeys(head_sizes, HIDDEN // HEADS))
        if any(defaults.get(key) is None for key in head_sizes):
            settings.append(dict.fromkeys(head_sizes))
    yield from settings
    ungrouped = {key: HEADS for key in sizes if meaning(key).counts == "kv"}
    if ungrouped:
        yield from ({**heads, **ungrouped} for heads in settings)
    if "expand" in config or "mamba_expand" in config:
        yield dict.fromkeys(head_sizes, 2 * HIDDEN // HEADS)
    if "attention_hidden_size" in sizes:
        yield {"attention_hidden_size": HIDDEN}


def _outputs(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """Let a backbone return as many layers as in full size, the last ones."""
    indices = config.get("out_indices")
    count = len(indices) if isinstance(indices, (list, tuple)) else 0
    return {"out_indices": list(range(num_layers - count + 1, num_layers + 1))} if 1 < count <= num_layers else {}


def _layer_lists(config: Mapping[str, Any], full_depth: object, num_layers: int) -> dict[str, Any]:
    """Shorten lists with one entry per layer to the tiny depth, keeping every kind of entry if it fits."""
    lists: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value and all(str(name).isdigit() for name in value):
            lists[key] = {}  # exceptions for single layers, most of them beyond the tiny depth
        if not isinstance(value, list) or len(value) != full_depth or not value:
            continue
        if all(type(item) is int and item > _SMALL for item in value):
            lists[key] = [(tiny_sizes({key: value[0]}).get(key, _SMALL))] * num_layers
        elif all(isinstance(item, (str, int)) for item in value):
            kinds = list(dict.fromkeys(value))
            lists[key] = (kinds * num_layers)[:num_layers] if len(kinds) <= num_layers else value[:num_layers]
    return lists


def _block_numbers(config: Mapping[str, Any], depth: object, num_layers: int) -> dict[str, list[int]]:
    """Name blocks of the tiny model so that it has every kind of block that the lists of numbers make, in turn."""
    lists = {key: value for key, value in config.items() if names_blocks(key, value)}
    if type(depth) is not int:
        return {}
    kinds = list(dict.fromkeys(frozenset(key for key in lists if block in lists[key]) for block in range(depth)))
    return {key: [block for block in range(num_layers) if key in kinds[block % len(kinds)]] for key in lists}


def _structures(config: Mapping[str, Any], sizes: Mapping[str, Any], num_layers: int) -> Iterator[dict[str, Any]]:
    """Yield settings that some architectures require: kinds of layers, experts, a larger hidden size."""
    experts = {
        key: meaning(key).sizes[0]
        for key, value in config.items()
        if value is None and meaning(key).sizes and re.search("expert|per_tok", key)
    }
    if experts:
        yield experts
    for key in config:
        if re.fullmatch(r"layer_types|layers_block_type|layers_types|block_types", key):
            for kinds in _LAYER_KINDS:
                yield {key: (list(kinds) * num_layers)[:num_layers]}
                if experts:
                    yield {key: (list(kinds) * num_layers)[:num_layers], **experts}
        if re.fullmatch(r"attn_layer_ind\w+|full_attn_ids\w*|attn_layers", key):
            yield {key: [1]}
    if "rope_parameters" in config:
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        yield {"rope_parameters": {kind: rope for kinds in _LAYER_KINDS for kind in kinds}}
        given = config["rope_parameters"] or {}
        yield from ({"rope_parameters": {**rope, **given, "mrope_section": list(some)}} for some in _ROPE_SECTIONS)
    indexed = {
        key: next(iter(meaning(key).sizes), 2)
        for key, value in config.items()
        if value is None and key.startswith("index")
    }
    if indexed:
        yield indexed
    languages = config.get("languages")
    if "default_language" in config and isinstance(languages, list) and languages:
        yield {"default_language": languages[0]}
    yield {"is_decoder": True}
    yield dict.fromkeys((key for key, size in sizes.items() if size == HIDDEN), 64)
    yield {key: 2 * sizes[key] for key in sizes if key == "image_size"}  # for grids of patches that are pooled
    yield {key: config[key] for key in sizes if "window" in key}  # which an encoder may count in pixels
    depths = {key: config[key] for key in sizes if meaning(key).counts == "layers" and type(config[key]) is int}
    lists = {key: value for key, value in config.items() if isinstance(value, list)}
    if depths and all(depth <= _MAX_LAYERS for depth in depths.values()):
        yield {**depths, **lists}
