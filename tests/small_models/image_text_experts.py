"""Tiny models of images with text, whose language models are mixtures of experts or hybrids."""

from __future__ import annotations

from typing import Any

from small_models import decoders, established, speech
from small_models.sizes import NO_HEAD_DIM, TEXT, VISION

TOKENS = {"image_token_id": 49, "video_token_id": 48}

# An encoder of rows of patches on grids of any resolution.
GRID = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "patch_size": 4,
}

RADIO = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "mlp_ratio": 1.5,
    "patch_size": 4,
    "image_size": 16,
    "max_img_size": 32,
}


def _mrope(section: list[int], **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": section, "rope_theta": 1e4, **others}}


# Each case: class in transformers, config class, settings.
IMAGE_TEXT_EXPERTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "KimiK25-images": (
        "Kimi_K25ForConditionalGeneration",
        "Kimi_K25Config",
        {
            **TOKENS,
            "vision_start_token_id": 47,
            "vision_end_token_id": 46,
            "text_config": {**established.MODELS["DeepseekV3-untied"][2], "model_type": "deepseek_v3"},
            "vision_config": {**GRID, "pos_emb_height": 4, "pos_emb_width": 4},
            "projection_hidden_size": 32,
            "tie_word_embeddings": False,
        },
    ),
    "Step3p7-images": (
        "Step3p7ForConditionalGeneration",
        "Step3p7Config",
        {
            "text_config": {
                **TEXT,
                "num_hidden_layers": 3,
                "num_sliding_attention_heads": 6,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "sliding_window": 6,
                "moe_intermediate_size": 12,
                "share_expert_dim": 20,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
            },
            "vision_config": {**VISION, "hidden_size": 32, "mlp_ratio": 1.5},
            "image_token_id": 49,
        },
    ),
    "MiniMaxM3VL-images": (
        "MiniMaxM3SparseForConditionalGeneration",
        "MiniMaxM3VLConfig",
        {
            "image_token_index": 49,
            "video_token_index": 48,
            "text_config": decoders.MODELS["MiniMaxM3VLText-untied"][2],
            "vision_config": GRID,
            "projector_hidden_size": 20,
        },
    ),
    "Ernie45VLMoe-images": (
        "Ernie4_5_VLMoeForConditionalGeneration",
        "Ernie4_5_VLMoeConfig",
        {
            **TOKENS,
            "image_start_token_id": 47,
            "image_end_token_id": 46,
            "video_start_token_id": 45,
            "video_end_token_id": 44,
            "text_config": {
                **NO_HEAD_DIM,
                **_mrope([2, 2, 2]),
                "moe_intermediate_size": [12, 8],
                "moe_num_experts": 4,
                "moe_k": 2,
                "moe_num_shared_experts": 2,
            },
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 4,
                "intermediate_size": 36,
                "patch_size": 4,
            },
        },
    ),
    "HunYuanVL-images": (
        "HunYuanVLForConditionalGeneration",
        "HunYuanVLConfig",
        {
            "image_token_id": 49,
            "im_start_id": 48,
            "im_end_id": 47,
            "im_newline_id": 46,
            "text_config": {**TEXT, **_mrope([1, 1, 1, 1])},
            "vision_config": {**GRID, "max_image_size": 16},
        },
    ),
    "Cosmos3Omni-images": (
        "Cosmos3OmniForConditionalGeneration",
        "Cosmos3OmniConfig",
        {
            **TOKENS,
            "vision_start_token_id": 47,
            "vision_end_token_id": 46,
            "text_config": {**TEXT, **_mrope([1, 1, 2])},
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "out_hidden_size": 48,
                "num_heads": 4,
                "intermediate_size": 36,
                "patch_size": 4,
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 16,
            },
        },
    ),
    "Cosmos3Edge-images": (
        "Cosmos3EdgeForConditionalGeneration",
        "Cosmos3EdgeConfig",
        {
            **TOKENS,
            "vision_start_token_id": 47,
            "vision_end_token_id": 46,
            "projector_hidden_size": 20,
            "text_config": {**TEXT, **_mrope([1, 1, 2])},
            "vision_config": {**GRID, "num_patches": 16},
        },
    ),
    "HYV4VL-images": (
        "HYV4VLForConditionalGeneration",
        "HYV4VLConfig",
        {
            "image_token_id": 49,
            "video_token_id": 48,
            "text_config": {
                **decoders.MODELS["HYV4-untied"][2],
                "qk_rope_head_dim": 8,
                "index_head_dim": 12,
                **_mrope([1, 1, 2]),
            },
            "vision_config": {**GRID, "max_image_size": 16, "out_hidden_size": 48},
        },
    ),
    "MistralLarge4-images": (
        "MistralLarge4ForConditionalGeneration",
        "MistralLarge4Config",
        {
            "image_token_index": 49,
            "text_config": {
                **{key: value for key, value in TEXT.items() if key not in ("head_dim", "num_key_value_heads")},
                "num_hidden_layers": 4,
                "num_key_value_heads": 4,
                "no_rope_layers": [1, 0, 1, 0],
                "kv_source_layers": [0, 1, 0, 1],
                "indexer_types": ["full", "full", "shared", "full"],
                "n_shared_experts": 2,
                "moe_intermediate_size": 12,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "kv_lora_rank": 10,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 6,
                "v_head_dim": 7,
                "index_topk": 4,
                "index_head_dim": 8,
                "index_n_heads": 2,
                "head_dim": 4,
            },
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 6},
        },
    ),
    "MuseSpark-images": (
        "MuseSparkForConditionalGeneration",
        "MuseSparkConfig",
        {
            **TOKENS,
            "audio_token_id": 47,
            "out_hidden_size": 128,
            "projector_hidden_size": 20,
            "text_config": {
                **TEXT,
                "layer_types": ["sliding_attention", "full_attention"],
                "sliding_window": 6,
                "moe_intermediate_size": 12,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "moe_hidden_size": 20,
                "mlp_layer_types": ["dense", "sparse"],
            },
            "vision_config": {**GRID, "pos_emb_height": 4, "pos_emb_width": 4},
            "audio_config": {
                "patch_sizes": [4, 2],
                "hidden_sizes": [8, 12],
                "depths": [1, 1],
                "num_hidden_layers": 2,
                "out_hidden_size": 48,
            },
        },
    ),
    "NemotronHOmni": (
        "NemotronH_Omni_Reasoning_V3",
        "NemotronH_Omni_Reasoning_V3_Config",
        {
            "text_config": {**decoders.MODELS["NemotronH-untied"][2], "model_type": "nemotron_h"},
            "vision_config": {**RADIO, "model_type": "radio", "video_temporal_patch_size": 2},
            "audio_config": {
                **speech.PARAKEET,
                "model_type": "parakeet_encoder",
                "projection_hidden_size": 20,
                "projection_bias": True,
            },
            "vision_hidden_size": 24,
            "projector_hidden_size": 20,
            "image_token_id": 49,
            "video_token_id": 49,
            "audio_token_id": 48,
        },
    ),
    "Inkling-images": (
        "InklingForConditionalGeneration",
        "InklingConfig",
        {
            "text_config": decoders.MODELS["InklingText-untied"][2],
            "vision_config": {
                "patch_size": 4,
                "temporal_patch_size": 2,
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
            },
            "audio_config": {"n_mel_bins": 3, "mel_vocab_size": 5},
            "image_token_id": 49,
            "audio_token_id": 48,
            "image_bos_token_id": 47,
            "audio_bos_token_id": 46,
        },
    ),
    "Radio": ("RadioModel", "RadioConfig", RADIO),
    "Glm5Next-images": (
        "Glm5NextForConditionalGeneration",
        "Glm5NextConfig",
        {
            **TOKENS,
            "image_start_token_id": 47,
            "image_end_token_id": 46,
            "video_start_token_id": 45,
            "video_end_token_id": 44,
            "text_config": {
                **NO_HEAD_DIM,
                "num_key_value_heads": 4,
                "layer_types": ["linear_attention", "full_attention"],
                "moe_intermediate_size": 12,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "mlp_layer_types": ["dense", "sparse"],
                "kv_lora_rank": 10,
                "q_lora_rank": 14,
                "v_head_dim": 7,
                "qk_nope_head_dim": 6,
                "index_topk": 4,
                "index_head_dim": 8,
                "index_n_heads": 2,
                "linear_head_dim": 6,
                "linear_num_heads": 4,
                "hc_mult": 2,
                "index_kpool": 2,
            },
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 4,
                "intermediate_size": 36,
                "patch_size": 4,
                "image_size": 16,
                "out_hidden_size": 48,
                "projection_intermediate_size": 20,
            },
        },
    ),
}

OMNI = IMAGE_TEXT_EXPERTS["NemotronHOmni"]
IMAGE_TEXT_EXPERTS["NemotronHOmni-silent"] = (*OMNI[:2], {**OMNI[2], "audio_config": None})

# Tried in full only by `pytest -m slow`.
RARE = frozenset(IMAGE_TEXT_EXPERTS)
