"""Tiny models of retrieval over pages and images."""

from __future__ import annotations

from typing import Any

from small_models.encoders import ENCODER

PAGES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "image_size": 32,
    "patch_size": 8,
    "model_type": "siglip_vision_model",
    "vision_use_head": False,
}
MODERN = {
    "text_config": {**ENCODER, "model_type": "modernbert"},
    "vision_config": PAGES,
    "image_token_id": 49,
    "pixel_shuffle_factor": 2,
}
ULTRA = {
    **MODERN,
    "text_config": {
        **{key: value for key, value in ENCODER.items() if key != "num_hidden_layers"},
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "prediction_head_size": 20,
        "model_type": "ultrabert",
    },
}

# Each case: class in transformers, config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ModernVBert": ("ModernVBertForMaskedLM", "ModernVBertConfig", MODERN),
    "UltraVBert": ("UltraVBertForMaskedLM", "UltraVBertConfig", ULTRA),
}
RARE = frozenset(MODELS)
