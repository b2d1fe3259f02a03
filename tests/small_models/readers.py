"""Tiny models of images with text, most of which read documents, whose language models are dense."""

from __future__ import annotations

from typing import Any

from small_models.sizes import NO_HEAD_DIM, TEXT, VISION

TOKENS = {"image_token_id": 49, "video_token_id": 48}
QWEN35 = {
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
}

SAM = {
    "hidden_size": 24,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 2,
    "global_attn_indexes": [1],
    "mlp_dim": 36,
    "downsample_channels": [12, 16],
}
ROUTED = {
    **NO_HEAD_DIM,
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "mlp_layer_types": ["dense", "sparse"],
}

# Each case: class in transformers, config class, settings.
READERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"{name}-images": (
            f"{name}ForConditionalGeneration",
            f"{name}Config",
            {
                **TOKENS,
                "text_config": {**TEXT, **QWEN35, "model_type": "qwen3_5_text"},
                "vision_config": {**VISION, "insert_layer_id": 0},
                "insert_layer_id": 0,
                "downsample_mode": "16x",
                "merger_times": times,
            },
        )
        for name, times in (("MiniCPMV4_6", 1), ("MiniCPMV4_7", 1), ("MiniCPMOcr", 2))
    },
    **{
        f"QianfanOCR-{name}": (
            "QianfanOCRForConditionalGeneration",
            "QianfanOCRConfig",
            {
                "text_config": {**TEXT, "model_type": "qwen3"},
                "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8], **switched},
                "image_token_id": 49,
            },
        )
        for name, switched in (
            ("images", {}),
            ("norms", {"use_qk_norm": True, "norm_type": "rms_norm"}),
            ("pooled", {"use_mean_pooling": False}),
        )
    },
    "QianfanOCR-vision": (
        "QianfanOCRVisionModel",
        "QianfanOCRVisionConfig",
        {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
    ),
    "Molmo2-images": (
        "Molmo2ForConditionalGeneration",
        "Molmo2Config",
        {
            "text_config": {**TEXT, "additional_vocab_size": 4},
            "vision_config": {
                **{key: value for key, value in VISION.items() if key != "image_size"},
                "num_key_value_heads": 2,
                "head_dim": 6,
                "num_position_embeddings": 16,
            },
            "adapter_config": {
                "hidden_size": 24,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 6,
                "intermediate_size": 20,
                "text_hidden_size": 48,
                "vision_feature_layer": [-1, -2],
            },
            "image_patch_id": 49,
            "image_start_token_id": 48,
            "image_end_token_id": 47,
            "low_res_image_start_token_id": 46,
            "frame_start_token_id": 45,
            "frame_end_token_id": 44,
        },
    ),
    "DeepseekOcr2-images": (
        "DeepseekOcr2ForConditionalGeneration",
        "DeepseekOcr2Config",
        {
            "text_config": ROUTED,
            "vision_config": {
                "sam_config": SAM,
                "encoder_config": {**NO_HEAD_DIM, "hidden_size": 16, "num_key_value_heads": 2},
            },
            "image_token_id": 49,
        },
    ),
    "UnlimitedOcr-images": (
        "UnlimitedOcrForConditionalGeneration",
        "UnlimitedOcrConfig",
        {
            "text_config": {**ROUTED, "num_key_value_heads": 4, "sliding_window": 6},
            "vision_config": {
                "sam_config": SAM,
                "encoder_config": {**VISION, "hidden_size": 16, "image_size": 16},
            },
            "image_token_id": 49,
        },
    ),
    "MuseGlimmer-images": (
        "MuseGlimmerForConditionalGeneration",
        "MuseGlimmerConfig",
        {
            **TOKENS,
            "out_hidden_size": 128,
            "projector_hidden_size": 20,
            "text_config": {**TEXT, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6},
            "vision_config": {
                **{key: value for key, value in VISION.items() if key != "image_size"},
                "hidden_size": 32,
                "patch_size": 4,
                "pos_emb_height": 4,
                "pos_emb_width": 4,
            },
        },
    ),
}

# Tried in full only by `pytest -m slow`.
RARE = frozenset(READERS)
