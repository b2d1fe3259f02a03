"""Tiny models of retrieval over pages and images."""

from __future__ import annotations

from typing import Any

from small_models import established
from small_models.encoders import ENCODER
from small_models.multimodal import MULTIMODAL
from small_models.sizes import TEXT

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
GEMMA = {
    **TEXT,
    "head_dim": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 6,
    "hidden_size_per_layer_input": 6,
    "embedding_dim": 12,
    "per_layer_config": {1: {"head_dim": 16, "num_key_value_heads": 1}},
}

# Each case: class in transformers, config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ModernVBert": ("ModernVBertForMaskedLM", "ModernVBertConfig", MODERN),
    "UltraVBert": ("UltraVBertForMaskedLM", "UltraVBertConfig", ULTRA),
    "EmbeddingGemma2": (
        "EmbeddingGemma2Model",
        "EmbeddingGemma2Config",
        {
            "text_config": GEMMA,
            "vision_config": {**MULTIMODAL["Gemma4-images"][2]["vision_config"], "model_type": "gemma4_vision"},
            "image_token_id": 49,
            "video_token_id": 48,
            "audio_token_id": 47,
        },
    ),
    "EmbeddingGemma2Text": ("EmbeddingGemma2TextModel", "EmbeddingGemma2TextConfig", GEMMA),
    **{
        name: (
            f"{name}ForRetrieval",
            f"{name}Config",
            {"vlm_config": {**settings, "model_type": model_type}, "embedding_dim": 12},
        )
        for name, model_type, settings in (
            ("ColPali", "paligemma", MULTIMODAL["PaliGemma-siglip"][2]),
            ("ColQwen2", "qwen2_vl", established.MODELS["Qwen2VL-images"][2]),
            ("ColModernVBert", "modernvbert", MODERN),
        )
    },
}
RARE = frozenset(MODELS)
