"""What a model's class demands of texts: how long they are, and of how many tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from mupscale_cli.verification.inputs.batch import unknown_kind

_LIMITS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")


def vocabulary(config: Any) -> int:
    """Return how many tokens reach all embeddings of a model.

    Raises:
        CannotVerify: the config does not say it.
    """
    text = config.get_text_config()
    size = getattr(text, "vocab_size", None) or getattr(text, "num_hash_buckets", None)  # CANINE hashes characters
    if size is None:
        raise unknown_kind("input_ids")
    return int(size)


def only_length(config: Any) -> int | None:
    """Return the one length of the texts that a model takes; None for a model that takes several."""
    length: int | None = getattr(config, "segment_means_seq_len", None)  # Nyströmformer cuts texts into segments
    return length


def length_limits(model: nn.Module) -> list[int]:
    """Return the lengths that texts must not exceed: by the config, and by each table of learned positions."""
    config: Any = model.config
    values = {**config.to_dict(), **config.get_text_config().to_dict()}
    rope = str(values.get("rope_parameters"))
    is_dynamic = "dynamic" in rope or "longrope" in rope
    limits = [values[key] for key in _LIMITS if isinstance(values.get(key), int) and not is_dynamic]
    ahead = int(hasattr(config, "ngram"))  # what ProphetNet predicts stands at the position behind its token
    return [limit - ahead for limit in (*limits, *_tables(model))]


def _tables(model: nn.Module) -> Iterator[int]:
    """Yield the number of positions in each table of learned positions."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Embedding) and ("position" in name or name == "wpe"):
                first = getattr(child, "offset", 0) if child.padding_idx is None else child.padding_idx + 1
                yield child.num_embeddings - first
