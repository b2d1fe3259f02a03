"""Sizes that small models of several kinds share."""

from typing import Any

# Some configs require hidden_size to be a multiple of the number of heads despite head_dim.
TEXT: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "head_dim": 8,
    "pad_token_id": 0,
}
NO_HEAD_DIM = {key: value for key, value in TEXT.items() if key != "head_dim"}
VISION: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
