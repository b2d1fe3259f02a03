"""Random texts, as the config and the head of a transformers model take them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mupscale_cli.verification.inputs.batch import BATCH, LENGTH, random_tokens
from mupscale_cli.verification.inputs.placeholders import audio_token, image_token, token_id
from mupscale_cli.verification.inputs.texts import only_length, vocabulary


def config_tokens(config: Any, generator: torch.Generator) -> tuple[Tensor, str]:
    """Draw texts of the vocabulary of a config, and describe them."""
    length = only_length(config) or LENGTH
    tokens = _as_text(config, random_tokens(vocabulary(config), length, generator))
    return _with_codes(config, tokens, generator), f"{BATCH} sequences of {length} random tokens"


def decoder_tokens(config: Any, generator: torch.Generator) -> Tensor:
    """Draw tokens for a decoder, which may read several channels of codes at once."""
    channels = _num_channels(config)
    if channels is None:
        return config_tokens(config, generator)[0]
    return torch.randint(config.decoder_config.vocab_size, (BATCH, LENGTH, channels), generator=generator)


def varied_tokens(config: Any, generator: torch.Generator, batch: int, length: int) -> Tensor:
    """Draw tokens of shape (batch, length) in random order, none twice before all of the vocabulary have occurred."""
    tokens = _permuted(vocabulary(config), batch * length, generator)
    return _with_codes(config, _as_text(config, tokens.view(batch, length)), generator)


def varied_decoder_tokens(config: Any, generator: torch.Generator, batch: int, length: int) -> Tensor:
    """Draw tokens for a decoder as `varied_tokens` does, of shape (batch, length, channels) if it reads channels."""
    channels = _num_channels(config)
    if channels is None:
        return varied_tokens(config, generator, batch, length)
    tokens = _permuted(config.decoder_config.vocab_size, batch * length * channels, generator)
    return tokens.view(batch, length, channels)


def for_head(model: Any, tokens: Tensor) -> Tensor:
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


def _num_channels(config: Any) -> int | None:
    """Return how many channels of codes a decoder reads at once; None if it reads tokens."""
    channels: int | None = getattr(getattr(config, "decoder_config", None), "num_channels", None)
    return channels


def _permuted(vocab_size: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw tokens in random order, none twice before all have occurred."""
    orders = [torch.randperm(vocab_size, generator=generator) for _ in range(-(-count // vocab_size))]
    return torch.cat(orders)[:count]


def _with_codes(config: Any, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Put the codes of its sound beside each token, for models that read both."""
    if not hasattr(config, "codebook_vocab_size"):
        return tokens
    shape = (*tokens.shape, config.num_codebooks)
    codes = torch.randint(config.codebook_vocab_size, shape, generator=generator)
    return torch.cat([tokens[..., None], codes], dim=-1)


def _as_text(config: Any, tokens: Tensor) -> Tensor:
    """Remove placeholders. For encoder-decoders, end with the only end token: classifiers read its state."""
    text = config.get_text_config()
    for placeholder in (image_token(config), audio_token(config), token_id(config, "video_token")):
        tokens[tokens == placeholder] = 0
    question = getattr(config, "question_token_id", None)
    if question is not None:  # the place of an answer that Splinter finds
        tokens[:, 0] = question
    end = getattr(text, "eos_token_id", None)
    if getattr(config, "is_encoder_decoder", False) and isinstance(end, int) and 0 <= end < text.vocab_size:
        tokens[tokens == end] = (end + 1) % text.vocab_size
        tokens[:, -1] = end
    return tokens
