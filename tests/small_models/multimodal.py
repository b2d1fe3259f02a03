"""Tiny models of images, videos or sound with text."""

from __future__ import annotations

from typing import Any

from small_models import decoders
from small_models.image_text import IMAGE_TEXT
from small_models.image_text_experts import IMAGE_TEXT_EXPERTS
from small_models.readers import READERS
from small_models.sizes import TEXT, VISION

SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}

NO_HEAD_DIM = {key: value for key, value in TEXT.items() if key != "head_dim"}
SINGLE = {key: value for key, value in NO_HEAD_DIM.items() if key != "num_key_value_heads"}
GEMMA4 = {
    "text_config": {
        **TEXT,
        "global_head_dim": 12,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 6,
    },
    "image_token_id": 49,
    "boi_token_id": 48,
    "eoi_token_id": 47,
    "video_token_id": 46,
    "audio_token_id": 45,
    "boa_token_id": 44,
    "eoa_token_index": 43,
}

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
    "InternVL-norms": (
        "InternVLForConditionalGeneration",
        "InternVLConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen3"},
            "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8], "use_qk_norm": True},
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
    "Gemma4-images": (
        "Gemma4ForConditionalGeneration",
        "Gemma4Config",
        {
            **GEMMA4,
            "text_config": {
                **GEMMA4["text_config"],
                "hidden_size_per_layer_input": 6,
                "vocab_size_per_layer_input": 50,
            },
            "vision_config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "head_dim": 8,
                "intermediate_size": 36,
                "patch_size": 4,
                "position_embedding_size": 8,
                "pooling_kernel_size": 2,
            },
        },
    ),
    "Gemma4Unified-images": (
        "Gemma4UnifiedForConditionalGeneration",
        "Gemma4UnifiedConfig",
        {
            **GEMMA4,
            "vision_config": {
                "patch_size": 4,
                "model_patch_size": 4,
                "pooling_kernel_size": 1,
                "mm_embed_dim": 24,
                "mm_posemb_size": 8,
                "output_proj_dims": 24,
                "num_soft_tokens": 4,
            },
        },
    ),
    **{
        f"Vilt-{kind}": (
            f"ViltFor{head}",
            "ViltConfig",
            {**SINGLE, "hidden_size": 32, "image_size": 32, "patch_size": 8, "max_position_embeddings": 64},
        )
        for kind, head in {
            "tied": "MaskedLM",
            "questions": "QuestionAnswering",
            "retrieval": "ImageAndTextRetrieval",
        }.items()
    },
    "Vilt-pairs": (
        "ViltForImagesAndTextClassification",
        "ViltConfig",
        {
            **SINGLE,
            "hidden_size": 32,
            "image_size": 32,
            "patch_size": 8,
            "max_position_embeddings": 64,
            "num_images": 2,
            "modality_type_vocab_size": 3,
        },
    ),
    "FastVlm": (
        "FastVlmForConditionalGeneration",
        "FastVlmConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "fastvit_t8",
                "hidden_size": 64,  # twice the last embed_dim
                "do_pooling": True,
                "global_pool": "avg",
                "model_args": {"inference_mode": True, "embed_dims": [8, 8, 16, 32], "layers": [1, 1, 1, 1]},
            },
            "image_token_index": 49,
        },
    ),
    "PerceptionLM": (
        "PerceptionLMForConditionalGeneration",
        "PerceptionLMConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_large_patch14_336",
                "do_pooling": True,
                "global_pool": "map",
                "model_args": {
                    "embed_dim": 32,
                    "depth": 2,
                    "num_heads": 4,
                    "img_size": [16, 16],
                    "patch_size": 4,
                    "global_pool": "",
                    "use_post_transformer_norm": False,
                    "init_values": 0.1,
                    "ref_feat_shape": [4, 4],
                },
            },
            "image_token_id": 49,
            "video_token_id": 48,
            "projector_pooling_ratio": 2,
        },
    ),
    "Gemma3n-images": (
        "Gemma3nForConditionalGeneration",
        "Gemma3nConfig",
        {
            "text_config": {
                **TEXT,
                "num_hidden_layers": 4,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "sliding_window": 6,
                "num_kv_shared_layers": 2,
                "laurel_rank": 5,
                "hidden_size_per_layer_input": 6,
                "vocab_size_per_layer_input": 42,
            },
            "vision_config": {"architecture": "test_resnet", "hidden_size": 96, "vocab_size": 4, "vocab_offset": 42},
            "audio_config": {
                "hidden_size": 16,
                "vocab_size": 4,
                "vocab_offset": 46,
                "input_feat_size": 16,
                "conf_num_attention_heads": 2,
                "conf_num_hidden_layers": 1,
                "sscp_conv_channel_size": [8, 4],
            },
            "vision_soft_tokens_per_image": 25,
            "image_token_id": 41,
            "audio_token_id": 40,
            "boi_token_id": 39,
            "eoi_token_id": 38,
            "boa_token_id": 37,
            "eoa_token_id": 36,
        },
    ),
    "Glm4v-images": (
        "Glm4vForConditionalGeneration",
        "Glm4vConfig",
        {
            "text_config": {
                **TEXT,
                "head_dim": None,
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [2, 2, 2],
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 1.0,
                },
            },
            "image_token_id": 49,
            "video_token_id": 48,
            "image_start_token_id": 47,
            "image_end_token_id": 46,
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 4,
                "intermediate_size": 28,
                "out_hidden_size": 48,
                "patch_size": 4,
                "image_size": 16,
                "spatial_merge_size": 2,
            },
        },
    ),
    "Qwen3VLMoe-images": (
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3VLMoeConfig",
        {
            "text_config": {
                **TEXT,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 12,
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
                "deepstack_visual_indexes": [0],
                "num_position_embeddings": 16,
            },
        },
    ),
    **{
        f"{name}-siglip": (
            f"{name}ForConditionalGeneration",
            f"{name}Config",
            {
                "text_config": {**TEXT, "model_type": "cohere2"},
                "vision_config": SIGLIP,
                token: 49,
                "downsample_factor": 2,
                "alignment_intermediate_size": 20,
            },
        )
        for name, token in (("AyaVision", "image_token_index"), ("Cohere2Vision", "image_token_id"))
    },
    "Fuyu-images": (
        "FuyuForCausalLM",
        "FuyuConfig",
        {**SINGLE, "text_config": {**SINGLE, "model_type": "persimmon"}, "patch_size": 4, "image_token_id": 49},
    ),
    **{
        f"{name}-images": (
            "GotOcr2ForConditionalGeneration",
            f"{name}Config",
            {
                "text_config": {**TEXT, "model_type": "qwen2"},
                "vision_config": {
                    "hidden_size": 24,
                    "output_channels": 16,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "image_size": 64,
                    "patch_size": 8,
                    "window_size": 2,
                    "global_attn_indexes": [1],
                    "mlp_dim": 36,
                },
                "image_token_index": 49,
            },
        )
        for name in ("GotOcr2", "PPChart2Table")
    },
    "Mllama-images": (
        "MllamaForConditionalGeneration",
        "MllamaConfig",
        {
            "text_config": {**NO_HEAD_DIM, "num_hidden_layers": 3, "cross_attention_layers": [1]},
            "vision_config": {
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 4,
                "intermediate_size": 36,
                "vision_output_dim": 48,
                "image_size": 16,
                "patch_size": 8,
                "intermediate_layers_indices": [0],
                "max_num_tiles": 2,
                "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            },
            "image_token_index": 49,
        },
    ),
    "Emu3-images": (
        "Emu3ForConditionalGeneration",
        "Emu3Config",
        {
            "text_config": TEXT,
            "vq_config": {
                "codebook_size": 20,
                "embed_dim": 4,
                "latent_channels": 4,
                "base_channels": 32,
                "channel_multiplier": [1, 2],
                "num_res_blocks": 1,
                "attn_resolutions": [],
                "hidden_size": 16,
                "num_attention_heads": 2,
            },
            "vocabulary_map": {"<image>": 48},
        },
    ),
    **{
        f"Apertus15-{'tied' if tied else 'untied'}": (
            "Apertus1p5ForConditionalGeneration",
            "Apertus1p5Config",
            {
                "text_config": {**TEXT, "vocab_size": 70},
                "vision_config": {
                    "codebook_size": 8,
                    "embed_dim": 4,
                    "latent_channels": 4,
                    "base_channels": 32,
                    "channel_multiplier": [1, 2],
                    "num_res_blocks": 1,
                    "attn_resolutions": [],
                    "resolution": 16,
                },
                "audio_config": {"codebook_size": 8, "num_filters": 4, "hidden_size": 8, "codebook_dim": 8},
                "image_token_id": 49,
                "audio_token_id": 48,
                "image_token_offset": 50,
                "audio_token_offset": 58,
                "tie_word_embeddings": tied,
            },
        )
        for tied in (True, False)
    },
    "Git-images": ("GitForCausalLM", "GitConfig", {**SINGLE, "vision_config": VISION}),
    "Phi4-images": (
        "Phi4MultimodalForCausalLM",
        "Phi4MultimodalConfig",
        {
            **NO_HEAD_DIM,
            "vision_config": {**VISION, "crop_size": 32},
            "audio_config": {
                "hidden_size": 24,
                "num_attention_heads": 4,
                "num_blocks": 1,
                "intermediate_size": 36,
                "ext_pw_out_channel": 24,
                "nemo_conv_channels": 8,
                "input_size": 16,
                "time_reduction": 4,
                "depthwise_separable_out_channel": 24,
            },
        },
    ),
    "Qwen4Exp-images": (
        "Qwen4ExpForConditionalGeneration",
        "Qwen4ExpConfig",
        {
            "text_config": {
                **TEXT,
                **decoders.QWEN4,
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
    **IMAGE_TEXT,
    **IMAGE_TEXT_EXPERTS,
    **READERS,
}

# Packages that a case needs beside transformers.
REQUIRES = {"Gemma3n-images": "timm", "FastVlm": "timm", "PerceptionLM": "timm"}
