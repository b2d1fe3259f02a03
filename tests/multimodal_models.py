"""Tiny models of images, videos or sound with text."""

from __future__ import annotations

from typing import Any

TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "head_dim": 8,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "image_size": 32,
    "patch_size": 8,
}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
QWEN = {"image_token_id": 49, "video_token_id": 48, "vision_start_token_id": 47, "vision_end_token_id": 46}
QWEN3_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 48,
    "num_heads": 4,
    "intermediate_size": 36,
    "patch_size": 4,
    "deepstack_visual_indexes": [0],
    "num_position_embeddings": 16,
}

# Each case: class in transformers, config class, settings.
MULTIMODAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LlavaNext-clip": (
        "LlavaNextForConditionalGeneration",
        "LlavaNextConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_index": 49,
            "image_grid_pinpoints": [[32, 64], [64, 32]],
        },
    ),
    "LlavaOnevision-siglip": (
        "LlavaOnevisionForConditionalGeneration",
        "LlavaOnevisionConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "vision_config": SIGLIP,
            "image_token_index": 49,
            "video_token_index": 48,
            "image_grid_pinpoints": [[32, 64], [64, 32]],
        },
    ),
    "LlavaNextVideo-clip": (
        "LlavaNextVideoForConditionalGeneration",
        "LlavaNextVideoConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_index": 49,
            "video_token_index": 48,
            "image_grid_pinpoints": [[32, 64], [64, 32]],
        },
    ),
    "VipLlava-clip": (
        "VipLlavaForConditionalGeneration",
        "VipLlavaConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_index": 49,
            "vision_feature_layers": [-1, -2],
        },
    ),
    "PaliGemma-siglip": (
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        {
            "text_config": {**TEXT, "model_type": "gemma"},
            "vision_config": {**SIGLIP, "projection_dim": 48},
            "projection_dim": 48,
            "hidden_size": 48,
            "image_token_index": 49,
        },
    ),
}
