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
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}

# Each case: class in transformers, config class, settings.
MULTIMODAL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Mistral3-pixtral": (
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        {
            "text_config": {**TEXT, "model_type": "mistral"},
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 6},
            "image_token_index": 49,
            "spatial_merge_size": 2,
            "tie_word_embeddings": False,
        },
    ),
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
    "InternVL-images": (
        "InternVLForConditionalGeneration",
        "InternVLConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen3"},
            "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            "image_token_id": 49,
            "downsample_ratio": 0.5,
        },
    ),
    "SmolVLM-images": (
        "SmolVLMForConditionalGeneration",
        "SmolVLMConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": VISION,
            "image_token_id": 49,
            "scale_factor": 2,
        },
    ),
    "Qwen35-images": (
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5Config",
        {
            "text_config": {
                **TEXT,
                "layer_types": ["linear_attention", "full_attention"],
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 6,
                "linear_value_head_dim": 8,
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [1, 1, 2],
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 1.0,
                    "mrope_interleaved": True,
                },
            },
            "image_token_id": 49,
            "video_token_id": 48,
            "vision_start_token_id": 47,
            "vision_end_token_id": 46,
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "out_hidden_size": 48,
                "num_heads": 4,
                "intermediate_size": 36,
                "patch_size": 4,
                "num_position_embeddings": 16,
            },
        },
    ),
}
