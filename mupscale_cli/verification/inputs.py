"""Random inputs for the models of libraries and for user-defined ones."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.checkpoints.libraries import TRANSFORMERS, Library
from mupscale_cli.errors import VerifyError
from mupscale_cli.plan import Plan
from mupscale_cli.verification.denoising import denoising_arguments
from mupscale_cli.verification.layout_inputs import layout_inputs
from mupscale_cli.verification.result import CannotVerify

BATCH = 2
LENGTH = 16
_IMAGE = 64
_FRAMES = 64  # of a spectrogram whose length the model leaves open
_SAMPLES = 8000  # of a waveform, where the config says nothing about the convolutions that read it: half a second
# Config keys for the bands of spectrograms that a model takes frame by frame.
_BANDS = ("feature_projection_input_dim", "input_feat_per_channel", "input_dim", "input_size")
# Config keys for the part of a model that reads sound.
_SOUND = ("audio_config", "encoder_config", "acoustic_tokenizer_encoder_config", "encoder")

_CHANNELS = ("in_channels", "num_channels", "in_chans")  # config keys for the channels of images


@dataclass(frozen=True)
class Inputs:
    """Arguments of a model's forward pass.

    Attributes:
        arguments: positional arguments.
        keywords: keyword arguments.
        description: a phrase for reports, such as "2 sequences of 16 random tokens".
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    description: str

    def to(self, device: torch.device, dtype: torch.dtype) -> Inputs:
        """Move all tensors to a device and convert the floating-point ones to `dtype`."""

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: move(inner) for key, inner in value.items()}
            if isinstance(value, Tensor):
                return value.to(device, dtype) if value.is_floating_point() else value.to(device)
            return value

        return Inputs(
            tuple(map(move, self.arguments)), {key: move(v) for key, v in self.keywords.items()}, self.description
        )


def reference_inputs(model: Any, generator: torch.Generator, library: Library = TRANSFORMERS) -> Inputs:
    """Make inputs for a model of a library.

    Raises:
        CannotVerify: the model takes another kind of input.
    """
    return _LIBRARIES.get(library.name, _decoder_inputs)(model, generator)


def _timm_inputs(model: Any, generator: torch.Generator) -> Inputs:
    channels, height, width = model.pretrained_cfg["input_size"]
    images, description = _random_images((channels, *_image_size(model, (height, width))), generator)
    return Inputs((images,), {}, description)


def _open_clip_inputs(model: Any, generator: torch.Generator) -> Inputs:
    images, description = _random_images((3, *_pair(model.visual.image_size)), generator)
    tokens = random_tokens(model.vocab_size, model.context_length, generator)
    return Inputs((images, tokens), {}, f"{description}, each with {model.context_length} random tokens")


def _diffusers_inputs(model: Any, generator: torch.Generator) -> Inputs:
    arguments = denoising_arguments(model, generator, BATCH, LENGTH)
    shape = "x".join(map(str, next(iter(arguments.values())).shape[1:]))
    return Inputs((), arguments, f"{BATCH} random samples of {shape} at random time steps")


def _decoder_inputs(model: Any, generator: torch.Generator) -> Inputs:
    """Make tokens for a trainer's own model, which reads them by its first embedding."""
    embedding = next((module for module in model.modules() if hasattr(module, "num_embeddings")), None)
    if embedding is None:
        raise CannotVerify("the model has no embedding; give your own model with `--model module.py:build`")
    tokens = random_tokens(embedding.num_embeddings, LENGTH, generator)
    return Inputs((tokens,), {}, f"{BATCH} sequences of {LENGTH} random tokens")


def _image_size(model: Any, default: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the images that a model's first layer takes."""
    return _pair(getattr(getattr(model, "patch_embed", None), "img_size", None) or default)


def _pair(size: int | Iterable[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _random_images(shape: tuple[int, int, int], generator: torch.Generator) -> tuple[Tensor, str]:
    pixels = torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
    return pixels, f"{BATCH} random images of {shape[1]}x{shape[2]}"


def _transformers_inputs(model: Any, generator: torch.Generator) -> Inputs:
    """Make inputs for a transformers model: tokens, images or sounds, according to its `main_input_name`.

    Raises:
        CannotVerify: the model takes another kind of input.
    """
    config: Any = model.config
    reads = inspect.signature(model.forward).parameters
    if "grid_thw" in reads:
        return _encoder_inputs(config, reads, model.dtype, generator)
    name = _input_name(model, config, reads)
    if name == "pixel_values" and "spatial_shapes" in reads:
        return Inputs((), _rows_of_patches(config, model.dtype, generator), f"{BATCH} random images as rows of patches")
    if name not in _KINDS:
        raise _unknown_kind(name)
    values, description = _KINDS[name](model, config, generator)
    if name == "input_ids":
        values = _for_head(model, values)
    keywords = {name: values}
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in reads:
        keywords["decoder_input_ids"] = _decoder_tokens(config, generator)
    if name == "input_ids":
        keywords |= _beside_tokens(config, reads, values, generator)
    if name == "input_ids" and getattr(config, "vision_config", None) is not None:
        if "pixel_values" not in reads:
            return Inputs((), keywords, f"{description} without images")  # this class takes them in a form of its own
        return Inputs((), keywords | _beside_images(model, config, keywords, generator), f"{description} with images")
    if name == "input_ids" and _sound_config(config) is not None and _features_of(model, "audio") is not None:
        return Inputs((), keywords | _beside_sounds(model, config, keywords, generator), f"{description} with sounds")
    return Inputs((), keywords, description)


def _input_name(model: Any, config: Any, reads: Mapping[str, Any]) -> str:
    """Return the argument that a model's inputs have above all."""
    name: str = getattr(model, "main_input_name", "input_ids")
    if name == "inputs":  # what its encoder reads
        return str(model.encoder.main_input_name)
    if name == "pixel_values" and "input_ids" in reads and getattr(config, "text_config", None) is not None:
        return "input_ids"  # BLIP names its images first
    return name


def _beside_tokens(
    config: Any, reads: Mapping[str, Any], tokens: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Make what a model reads beside token ids, except images and sounds of a part of its own."""
    inputs = layout_inputs(config, reads, tokens.shape, generator)
    if "global_attention_mask" in reads:  # Longformer and LED
        inputs["global_attention_mask"] = torch.zeros_like(tokens).index_fill(-1, torch.tensor(0), 1)
    if "pixel_values" in reads and getattr(config, "visual_embed", "bbox" in reads):  # a picture of the page
        inputs["pixel_values"] = _images(config, generator)[0]
    return inputs


def _beside_images(
    model: Any, config: Any, keywords: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Make the images of texts, and put placeholders for them in front of these."""
    reads = inspect.signature(model.forward).parameters
    made = _image_inputs(model, config, generator)
    if "qformer_input_ids" in reads:  # the instruction, which the queries read as well
        made["qformer_input_ids"] = random_tokens(config.qformer_config.vocab_size, LENGTH, generator)
    kind = _visual_kind(config)
    placeholder, features_of = _token(config, f"{kind}_token"), _features_of(model, kind)
    made["input_ids"] = _with_placeholders(model, {**keywords, **made}, placeholder, features_of)
    for name in {"mm_token_type_ids", "moe_mm_token_type_ids"} & reads.keys():
        made[name] = torch.eq(made["input_ids"], image_token(config) or 0).long()
    return made


def _beside_sounds(
    model: Any, config: Any, keywords: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Any]:
    """Make the sounds of texts, and put placeholders for them in front of these."""
    made = _sound_inputs(model, config, generator)
    features_of = _features_of(model, "audio")
    if hears_while_it_writes(config):
        count = _num_features(model, {**keywords, **made}, features_of)
        return {**made, "input_ids": keywords["input_ids"][:, :count]}
    return {**made, "input_ids": _with_placeholders(model, {**keywords, **made}, audio_token(config), features_of)}


def _image_inputs(model: Any, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Make one image per text: pixels, or a sequence of patches for models that take any resolution."""
    vision = config.vision_config
    reads = inspect.signature(model.forward).parameters
    if "image_grid_thw" in reads:
        patches, grids, merges = _patches_on_grids(vision, model.dtype, generator)
        if _reads_rows(model, vision):
            patches = patches.flatten(1)
        values = {"pixel_values": patches, "image_grid_thw": grids, "image_merge_sizes": merges}
        return {name: values[name] for name in values if name in reads}
    parameters = inspect.signature(_features_of(model, "image") or model.forward).parameters
    make = next((make for mark, make in _PATCHES.items() if mark in reads or mark in parameters), None)
    if make is not None:
        return make(vision, model.dtype, generator)
    pixels = _images(vision, generator)[0].to(model.dtype)
    if "image_embeds_position_mask" in reads:  # features take the place of the first tokens
        places = torch.arange(LENGTH).lt(config.latent_query_num).expand(BATCH, -1)
        return {"pixel_values": pixels, "image_embeds_position_mask": places}
    if _visual_kind(config) == "video":
        return {"pixel_values": torch.stack([pixels, pixels.flip(-1)], dim=1)}
    if "aspect_ratio_ids" in parameters:  # one tile of as many as an image may have
        return _tiled(pixels, vision.max_num_tiles)
    if "tile_fine_mask" in reads:  # tiles, and which of them are not padding
        return {"pixel_values": pixels[:, None], "pixel_attention_mask": torch.ones(BATCH, 1, dtype=torch.bool)}
    if "pixel_attention_mask" in parameters:  # several images per text
        return {"pixel_values": pixels[:, None]}
    if "high_res_pixel_values" in parameters:  # each image in two sizes
        large = _images(config.high_res_vision_config, generator)[0]
        return {"pixel_values": pixels, "high_res_pixel_values": large.to(model.dtype)}
    if "image_sizes" not in parameters:
        return {"pixel_values": pixels}
    sizes = torch.tensor([pixels.shape[-2:]] * BATCH)
    if hasattr(config, "image_grid_pinpoints"):  # each image and its tiles
        pixels = pixels[:, None].repeat(1, 1 + _tiles(config, vision, sizes[0].tolist()), 1, 1, 1)
    return {"pixel_values": pixels, "image_sizes": sizes}


def _reads_rows(model: Any, vision: Any) -> bool:
    """Tell whether an image encoder's first layer reads a patch as one row of numbers."""
    towers = (module for module in model.modules() if getattr(module, "config", None) is vision)
    return isinstance(_first_layer(next(towers, None)), nn.Linear)


def _pooled_patches(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make square images as rows of patches; every feature pools a square of four patches."""
    side = math.isqrt(vision.num_position_embeddings)
    shape = (BATCH, side * side, vision.num_channels * vision.patch_size**2)
    places = torch.arange(side * side).view(side // 2, 2, side // 2, 2).transpose(1, 2).reshape(-1, 4)
    return {
        "pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
        "image_token_pooling": torch.cat([places + image * side * side for image in range(BATCH)]),
        "image_grids": torch.tensor([[side // 2, side // 2, 0, 0]] * BATCH),
    }


def _strip_of_patches(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make square images as one strip of patches, wide enough for squares of squares of them."""
    side = 2 * vision.window_kernel_size[0] ** 2
    shape = (1, vision.num_channels, vision.patch_size, BATCH * side * side * vision.patch_size)
    pixels = torch.randn(shape, generator=generator, dtype=torch.float64)
    return {"pixel_values": pixels.to(dtype), "target_sizes": torch.full((BATCH, 2), side)}


def _encoder_inputs(config: Any, reads: Mapping[str, Any], dtype: torch.dtype, generator: torch.Generator) -> Inputs:
    """Make images for an image encoder alone that takes any resolution; its first argument is the patches."""
    patches, grids, merges = _patches_on_grids(config, dtype, generator)
    values = {next(iter(reads)): patches, "grid_thw": grids, "merge_sizes": merges}
    return Inputs((), {name: values[name] for name in values if name in reads}, f"{BATCH} random images as patches")


def _patches_on_grids(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Make square images as one sequence of patches.

    Returns:
        The patches, the time, height and width of each image in patches, and how many patches are merged along a side.
    """
    merge = getattr(vision, "spatial_merge_size", None) or getattr(vision, "merge_size", None)
    merge = merge or getattr(vision, "merge_kernel_size", (1,))[0]
    side = 2 * merge
    channels = next((value for key in _CHANNELS if (value := getattr(vision, key, None))), 3)
    frames = getattr(vision, "temporal_patch_size", None) or getattr(vision, "patch_temporal", None)
    frames = frames or (1 if hasattr(vision, "max_image_size") else None)  # Hunyuan reads a patch as a row, too
    shape = (channels * frames * vision.patch_size**2,) if frames else (channels, vision.patch_size, vision.patch_size)
    patches = torch.randn(BATCH * side * side, *shape, generator=generator, dtype=torch.float64)
    return patches.to(dtype), torch.tensor([[1, side, side]] * BATCH), torch.full((BATCH,), merge)


def _placed_patches(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make square images as patches with their columns and rows."""
    side = 2 * getattr(vision, "pooling_kernel_size", 1)
    size = 3 * (getattr(vision, "model_patch_size", None) or vision.patch_size) ** 2
    patches = torch.randn(BATCH, side * side, size, generator=generator, dtype=torch.float64)
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1)
    return {"pixel_values": patches.to(dtype), "image_position_ids": places.repeat(BATCH, 1, 1)}


def _rows_of_patches(vision: Any, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    """Make square images as rows of patches."""
    shape = (BATCH, vision.num_patches, vision.num_channels * vision.patch_size**2)
    return {
        "pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
        "pixel_attention_mask": torch.ones(shape[:2], dtype=torch.long),
        "spatial_shapes": torch.full((BATCH, 2), math.isqrt(vision.num_patches)),
    }


# How images are made as patches, by an argument of the model or of the function that makes features of them.
_PATCHES: dict[str, Callable[[Any, torch.dtype, torch.Generator], dict[str, Tensor]]] = {
    "image_token_pooling": _pooled_patches,  # patches, and which of them a feature pools
    "target_sizes": _strip_of_patches,  # the patches of all images in one strip
    "spatial_shapes": _rows_of_patches,  # patches side by side, of any aspect ratio
    "image_position_ids": _placed_patches,  # patches and their places
}


def _tiled(pixels: Tensor, num_tiles: int) -> dict[str, Tensor]:
    """Make one image per text, of one tile, for models whose blocks attend to images."""
    mask = (torch.arange(num_tiles) == 0).long().expand(BATCH, 1, num_tiles)
    return {
        "pixel_values": pixels[:, None, None].repeat(1, 1, num_tiles, 1, 1, 1),
        "aspect_ratio_ids": torch.ones(BATCH, 1, dtype=torch.long),
        "aspect_ratio_mask": mask,
        "cross_attention_mask": mask[:, None].repeat(1, LENGTH, 1, 1),
    }


def _tiles(config: Any, vision: Any, size: list[int]) -> int:
    """Return into how many tiles LLaVA cuts an image of a height and width."""
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(tuple(size), config.image_grid_pinpoints)
    tile = vision.image_size
    return int((height // tile) * (width // tile))


def _sound_config(config: Any) -> Any:
    """Return the config of the part of a model that reads sound, or None."""
    return next((value for key in _SOUND if (value := getattr(config, key, None)) is not None), None)


def _features_of(model: Any, kind: str) -> Any:
    """Return the function that turns images or sounds into features, which some heads leave to their model, or None."""
    name = f"get_{kind}_features"
    return getattr(model, name, None) or getattr(getattr(model, "model", None), name, None)


def _visual_kind(config: Any) -> str:
    """Return whether a model has placeholders for images or only for videos, as `image` or `video`."""
    return "video" if image_token(config) is None and _token(config, "video_token") is not None else "image"


def _parameters(functions: Iterable[Callable[..., Any]]) -> set[str]:
    """Return the names of all arguments of some functions."""
    return {name for function in functions for name in inspect.signature(function).parameters}


def _sound_inputs(model: Any, config: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """Make one spectrogram or waveform per text, and the masks of its frames that the class takes."""
    owners = [owner for owner in (model, getattr(model, "model", None)) if owner is not None]
    parameters = _parameters(owner.forward for owner in owners)  # a head may pass all its arguments to its model
    name = "input_features" if "input_features" in parameters else "input_values"
    sounds = _KINDS[name](model, _sound_config(config), generator)[0].to(model.dtype)
    taken = _parameters(owner.get_audio_features for owner in owners if hasattr(owner, "get_audio_features"))
    masks = {"feature_attention_mask", "input_features_mask", "padding_mask"} & taken & parameters
    by_frames = name == "input_features" and sounds.shape[1] != _sound_config(config).num_mel_bins
    mask = torch.ones(BATCH, sounds.shape[1 if by_frames else -1], dtype=torch.long)
    exact: dict[str, Any] = {"sample": False} if "sample" in parameters else {}  # without noise on the features
    return {name: sounds, **dict.fromkeys(sorted(masks), mask), **exact}


def _with_placeholders(
    model: Any, keywords: Mapping[str, Tensor], placeholder: int | None, features_of: Callable[..., Any] | None
) -> Tensor:
    """Prepend one placeholder per feature of its image or sound to each text."""
    tokens = keywords["input_ids"]
    if placeholder is None or features_of is None:  # models such as CLIP take images and texts separately
        return tokens
    count = _num_features(model, keywords, features_of)
    return torch.cat([torch.full((BATCH, count), placeholder), tokens], dim=1)


def _num_features(model: Any, keywords: Mapping[str, Tensor], features_of: Callable[..., Any]) -> int:
    """Return how many features a model makes of one image or sound."""
    device = next(model.parameters()).device
    if "input_ids" in inspect.signature(features_of).parameters:  # the places of the features; its encoder does without
        features_of = getattr(model, model.base_model_prefix, model).audio_tower
    given = {key: value for key, value in keywords.items() if key != "input_ids"}
    features = features_of(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in given.items()})
    pooled = getattr(features, "pooler_output", None)
    if pooled is None and (blocks := getattr(features, "deepstack_features", None)):
        pooled = blocks[0][1]  # features for several blocks, as many for each
    features = getattr(features, "last_hidden_state", features) if pooled is None else pooled
    features = torch.cat(tuple(features)) if isinstance(features, (list, tuple)) else features
    return int(features.numel() // features.shape[-1] // BATCH)


def hears_while_it_writes(config: Any) -> bool:
    """Tell whether each token reads the sound of its own time, so that no text continues without sound."""
    return hasattr(config, "audio_length_per_tok")


def image_token(config: Any) -> int | None:
    """Return the id of the placeholder token for an image feature; None if the config has none."""
    return _token(config, "image_token")


def audio_token(config: Any) -> int | None:
    """Return the id of the placeholder token for a feature of a sound; None if the config has none."""
    return _token(config, "audio_token")


def _token(config: Any, name: str) -> int | None:
    ids = (getattr(config, f"{name}_{kind}", None) for kind in ("id", "index"))
    return next((value for value in ids if isinstance(value, int)), None)


def _images(config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    if hasattr(config, "architecture"):  # a tower of timm, whose config does not state its images
        from timm.models import get_pretrained_cfg_value

        shape: Any = get_pretrained_cfg_value(config.architecture, "input_size")
        return _random_images(shape, generator)
    config = getattr(config, "encoder", None) or getattr(config, "vision_config", None) or config
    size = _pair(getattr(config, "image_size", None) or getattr(config, "input_size", None) or _IMAGE)
    frames = getattr(config, "num_frames", None)
    channels = getattr(config, "num_channels", 3)
    if frames is None:
        return _random_images((channels, *size), generator)
    pixels = torch.randn(BATCH, frames, channels, *size, generator=generator, dtype=torch.float64)
    return pixels, f"{BATCH} random videos of {frames} frames"


def _flattened_patches(_model: nn.Module, config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Make images as rows of patches, each behind the numbers of its row and column from 1."""
    vision = config.vision_config
    side = math.isqrt(LENGTH)
    places = 1 + torch.cartesian_prod(torch.arange(side), torch.arange(side)).double().expand(BATCH, -1, -1)
    size = (BATCH, side * side, vision.patch_embed_hidden_size)
    patches = torch.randn(size, generator=generator, dtype=torch.float64)
    return torch.cat([places, patches], dim=-1), f"{BATCH} random images of {side * side} patches"


def _tokens(config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    length = getattr(config, "segment_means_seq_len", LENGTH)  # Nyströmformer takes texts of one length
    vocab_size = getattr(config.get_text_config(), "vocab_size", None) or sys.maxunicode + 1  # or characters
    tokens = _as_text(config, random_tokens(vocab_size, length, generator))
    return _with_codes(config, tokens, generator), f"{BATCH} sequences of {length} random tokens"


def _decoder_tokens(config: Any, generator: torch.Generator) -> Tensor:
    """Draw tokens for a decoder, which may read several channels of codes at once."""
    channels = _num_channels(config)
    if channels is None:
        return _tokens(config, generator)[0]
    return torch.randint(config.decoder_config.vocab_size, (BATCH, LENGTH, channels), generator=generator)


def _num_channels(config: Any) -> int | None:
    """Return how many channels of codes a decoder reads at once; None if it reads tokens."""
    channels: int | None = getattr(getattr(config, "decoder_config", None), "num_channels", None)
    return channels


def _with_codes(config: Any, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Put the codes of its sound beside each token, for models that read both."""
    if not hasattr(config, "codebook_vocab_size"):
        return tokens
    shape = (*tokens.shape, config.num_codebooks)
    codes = torch.randint(config.codebook_vocab_size, shape, generator=generator)
    return torch.cat([tokens[..., None], codes], dim=-1)


def varied_tokens(config: Any, generator: torch.Generator, batch: int, length: int) -> Tensor:
    """Draw tokens of shape (batch, length) in random order, none twice before all of the vocabulary have occurred."""
    tokens = _permuted(config.get_text_config().vocab_size, batch * length, generator)
    return _with_codes(config, _as_text(config, tokens.view(batch, length)), generator)


def varied_decoder_tokens(config: Any, generator: torch.Generator, batch: int, length: int) -> Tensor:
    """Draw tokens for a decoder as `varied_tokens` does, of shape (batch, length, channels) if it reads channels."""
    channels = _num_channels(config)
    if channels is None:
        return varied_tokens(config, generator, batch, length)
    tokens = _permuted(config.decoder_config.vocab_size, batch * length * channels, generator)
    return tokens.view(batch, length, channels)


def _permuted(vocab_size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw tokens in random order, none twice before all have occurred."""
    orders = [torch.randperm(vocab_size, generator=generator) for _ in range(-(-count // vocab_size))]
    return torch.cat(orders)[:count]


def _unknown_kind(name: str) -> CannotVerify:
    return CannotVerify(
        f"cannot make random inputs of kind `{name}`; give your own model with `--model module.py:build`"
    )


def _for_head(model: Any, tokens: Tensor) -> Tensor:
    """Arrange texts as the model's head takes them.

    Multiple choice takes them as the choices of one question, and a classifier that looks for the last token in front
    of the padding takes one text if there is no padding.
    """
    head = type(model).__name__
    if head.endswith("ForMultipleChoice"):
        return tokens[None]
    if head.endswith("ForSequenceClassification") and model.config.get_text_config().pad_token_id is None:
        return tokens[:1]
    return tokens


def _as_text(config: Any, tokens: Tensor) -> Tensor:
    """Remove placeholders. For encoder-decoders, end with the only end token: classifiers read its state."""
    text = config.get_text_config()
    for placeholder in (image_token(config), audio_token(config), _token(config, "video_token")):
        tokens[tokens == placeholder] = 0
    question = getattr(config, "question_token_id", None)
    if question is not None:  # the place of an answer that Splinter finds
        tokens[:, 0] = question
    end = getattr(text, "eos_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end, int) and 0 <= end < text.vocab_size:
        tokens[tokens == end] = (end + 1) % text.vocab_size
        tokens[:, -1] = end
    return tokens


def _convolves_bands(model: nn.Module, bands: int | None) -> bool:
    """Tell whether the first layer that reads as many channels as a spectrogram has bands convolves over its frames."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d) and module.in_channels == bands:
            return True
        if isinstance(module, nn.Linear) and module.in_features == bands:
            return False
    return False


def _spectrograms(model: nn.Module, config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Make spectrograms: of bands by frames if convolutions over time read them, else of frames by bands."""
    config = _sound_config(config) or config
    bands = next((value for key in _BANDS if (value := getattr(config, key, None))), None)
    if bands is not None:
        shape: tuple[int, ...] = (BATCH, _FRAMES, bands)
    elif hasattr(config, "spec_size"):  # read as images of one channel
        shape = (BATCH, 1, config.spec_size**2 // config.num_mel_bins, config.num_mel_bins)
    elif hasattr(config, "n_window"):  # cut into windows
        shape = (BATCH, config.num_mel_bins, 4 * config.n_window)
    elif hasattr(config, "max_source_positions"):
        shape = (BATCH, config.num_mel_bins, 2 * config.max_source_positions)  # the encoder halves their length
    elif _convolves_bands(model, getattr(config, "num_mel_bins", None)):
        shape = (BATCH, config.num_mel_bins, _FRAMES)
    elif hasattr(config, "num_mel_bins"):
        first = _first_layer(model)  # which may read several frames side by side
        bands = first.in_features if isinstance(first, nn.Linear) else config.num_mel_bins
        shape = (BATCH, getattr(config, "max_length", _FRAMES), bands)
    elif hasattr(config, "d_model"):  # frames that the residual stream reads as they are
        shape = (BATCH, _FRAMES, config.d_model)
    else:
        raise _unknown_kind("input_features")
    return torch.randn(shape, generator=generator, dtype=torch.float64), f"{BATCH} random spectrograms"


def _waveforms(model: nn.Module, config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    if hasattr(config, "num_mel_bins") and not hasattr(config, "conv_stride"):  # some give this name to spectrograms
        return _spectrograms(model, config, generator)
    config = _sound_config(config) or config
    strides = getattr(config, "conv_stride", None) or getattr(config, "downsampling_ratios", None)
    samples = LENGTH * math.prod(strides) + sum(getattr(config, "conv_kernel", ())) if strides else _SAMPLES
    # Classes with a mask of this name take the channel as well; those of wav2vec 2.0 add it.
    has_channels = "padding_mask" in inspect.signature(model.forward).parameters
    shape = (BATCH, 1, samples) if has_channels else (BATCH, samples)
    return torch.randn(shape, generator=generator, dtype=torch.float64), f"{BATCH} random waveforms"


_KINDS: dict[str, Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, str]]] = {
    "input_ids": lambda _, config, generator: _tokens(config, generator),
    "pixel_values": lambda _, config, generator: _images(config, generator),
    "input_features": _spectrograms,
    "input_values": _waveforms,
    "flattened_patches": _flattened_patches,
}
_LIBRARIES: dict[str, Callable[[Any, torch.Generator], Inputs]] = {
    "transformers": _transformers_inputs,
    "timm": _timm_inputs,
    "open_clip": _open_clip_inputs,
    "diffusers": _diffusers_inputs,
}


def random_tokens(vocab_size: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw a batch of token ids of shape (BATCH, length)."""
    return torch.randint(vocab_size, (BATCH, length), generator=generator)


def user_inputs(
    module: ModuleType,
    config: Mapping[str, Any],
    plan: Plan | None,
    generator: torch.Generator,
    model: nn.Module | None = None,
) -> Inputs:
    """Make inputs for a user-defined model: call its module's `inputs(config, generator)`, or infer them.

    Without that function, the first layer decides: tokens for an embedding, else random numbers.

    Args:
        module: module of the user's build function.
        config: the config that was passed to the build function.
        plan: plan of a widening; None if there is none yet.
        generator: source of the random numbers.
        model: the model that was built.

    Raises:
        VerifyError: the inputs cannot be inferred from the first layer.
    """
    make_inputs = getattr(module, "inputs", None)
    if callable(make_inputs):
        values = make_inputs(config, generator)
        if isinstance(values, Mapping):
            return Inputs((), dict(values), "inputs of the user's module")
        return Inputs(values if isinstance(values, tuple) else (values,), {}, "inputs of the user's module")
    embedding = _first_layer(model)
    vocab_size = embedding.num_embeddings if isinstance(embedding, nn.Embedding) else config.get("vocab_size")
    if vocab_size is not None:
        tokens = random_tokens(vocab_size, LENGTH, generator)
        return Inputs((tokens,), {}, f"{BATCH} sequences of {LENGTH} random tokens")
    shape = _first_weight_shape(plan, model)
    if shape is None:
        raise VerifyError(
            "cannot infer the inputs of your model from its first layer",
            hint="define `inputs(config, generator)` next to the build function",
        )
    size = (BATCH, shape[1]) if len(shape) == 2 else (BATCH, shape[1], _IMAGE, _IMAGE)
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    return Inputs((values,), {}, f"random numbers of shape {tuple(size)}")


def _first_layer(model: nn.Module | None) -> nn.Module | None:
    """Return the first module that has parameters of its own."""
    modules = model.modules() if model is not None else ()
    return next((module for module in modules if next(module.parameters(recurse=False), None) is not None), None)


def _first_weight_shape(plan: Plan | None, model: nn.Module | None) -> tuple[int, ...] | None:
    """Return the shape of the weight that reads the model's input; in a plan, the first with unwidened columns."""
    if plan is not None:
        weights = (tensor for tensor in plan.tensors if len(tensor.source.shape) in (2, 4))
        return next((t.source.shape for t in weights if t.dims[1].size == t.dims[1].wide_size), None)
    parameters = model.parameters() if model is not None else ()
    return next((tuple(p.shape) for p in parameters if p.dim() in (2, 4)), None)
