"""Random sounds as spectrograms and waveforms."""

from __future__ import annotations

import inspect
import math
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from mupscale_cli.verification.inputs.batch import BATCH, LENGTH, unknown_kind
from mupscale_cli.verification.inputs.layers import convolves_bands, first_layer

_FRAMES = 64  # of a spectrogram whose length the model leaves open
_SAMPLES = 8000  # of a waveform, where the config says nothing about the convolutions that read it: half a second
# Config keys for the bands of spectrograms that a model takes frame by frame.
_BANDS = ("feature_projection_input_dim", "input_feat_per_channel", "input_dim", "input_size")
# Config keys for the part of a model that reads sound.
_SOUND = ("audio_config", "encoder_config", "acoustic_tokenizer_encoder_config", "encoder")


def spectrograms(model: nn.Module, config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Make spectrograms: of bands by frames if convolutions over time read them, else of frames by bands."""
    config = sound_config(config) or config
    bands = next((value for key in _BANDS if (value := getattr(config, key, None))), None)
    if bands is not None:
        shape: tuple[int, ...] = (BATCH, _FRAMES, bands)
    elif hasattr(config, "spec_size"):  # read as images of one channel
        shape = (BATCH, 1, config.spec_size**2 // config.num_mel_bins, config.num_mel_bins)
    elif hasattr(config, "n_window"):  # cut into windows
        shape = (BATCH, config.num_mel_bins, 4 * config.n_window)
    elif hasattr(config, "max_source_positions"):
        shape = (BATCH, config.num_mel_bins, 2 * config.max_source_positions)  # the encoder halves their length
    elif convolves_bands(model, getattr(config, "num_mel_bins", None)):
        shape = (BATCH, config.num_mel_bins, _FRAMES)
    elif hasattr(config, "num_mel_bins"):
        first = first_layer(model)  # which may read several frames side by side
        bands = first.in_features if isinstance(first, nn.Linear) else config.num_mel_bins
        shape = (BATCH, getattr(config, "max_length", _FRAMES), bands)
    elif hasattr(config, "d_model"):  # frames that the residual stream reads as they are
        shape = (BATCH, _FRAMES, config.d_model)
    else:
        raise unknown_kind("input_features")
    return torch.randn(shape, generator=generator, dtype=torch.float64), f"{BATCH} random spectrograms"


def waveforms(model: nn.Module, config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Make waveforms, long enough for all convolutions that read them."""
    if hasattr(config, "num_mel_bins") and not hasattr(config, "conv_stride"):  # some give this name to spectrograms
        return spectrograms(model, config, generator)
    config = sound_config(config) or config
    strides = getattr(config, "conv_stride", None) or getattr(config, "downsampling_ratios", None)
    samples = LENGTH * math.prod(strides) + sum(getattr(config, "conv_kernel", ())) if strides else _SAMPLES
    # Classes with a mask of this name take the channel as well, as codecs do; those of wav2vec 2.0 add it.
    has_channels = "padding_mask" in inspect.signature(model.forward).parameters or hasattr(
        config, "downsampling_ratios"
    )
    shape = (BATCH, 1, samples) if has_channels else (BATCH, samples)
    return torch.randn(shape, generator=generator, dtype=torch.float64), f"{BATCH} random waveforms"


def sounds_to_continue(config: Any, reads: Container[str], generator: torch.Generator) -> dict[str, Tensor]:
    """Make what a decoder that writes spectrograms reads beside the encoder's states, by argument; nothing for others.

    Args:
        config: config of the model.
        reads: names of the arguments of its forward pass.
        generator: source of the random numbers.
    """
    if "decoder_input_values" not in reads:
        return {}
    shapes = {
        "decoder_input_values": (BATCH, LENGTH, config.num_mel_bins),
        "speaker_embeddings": (BATCH, config.speaker_embedding_dim),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
        if name in reads
    }


def sound_config(config: Any) -> Any:
    """Return the config of the part of a model that reads sound, or None."""
    return next((value for key in _SOUND if (value := getattr(config, key, None)) is not None), None)


def hears_while_it_writes(config: Any) -> bool:
    """Tell whether each token reads the sound of its own time, so that no text continues without sound."""
    return hasattr(config, "audio_length_per_tok")
