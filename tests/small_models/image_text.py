"""Tiny models of images with text, of families that repeat a pattern: an encoder, a connector, a language model."""

from __future__ import annotations

from typing import Any

from small_models import decoders
from small_models.encoders import BART, T5

TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NO_HEAD_DIM = {key: value for key, value in TEXT.items() if key != "head_dim"}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
# An encoder that takes images and videos of any resolution as rows of patches.
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 48,
    "num_heads": 4,
    "intermediate_size": 36,
    "patch_size": 4,
    "spatial_merge_size": 2,
}
TOKENS = {
    "image_token_id": 49,
    "video_token_id": 48,
    "vision_start_token_id": 47,
    "vision_end_token_id": 46,
}
GLM_TOKENS = {
    "image_token_id": 49,
    "video_token_id": 48,
    "image_start_token_id": 47,
    "image_end_token_id": 46,
    "video_start_token_id": 45,
    "video_end_token_id": 44,
}

OMNI_TOKENS = {"image": 49, "video": 48, "audio": 47}
OMNI_AUDIO = {
    "d_model": 24,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 36,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "n_window": 8,
    "output_dim": 48,
}

OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 40,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
BERT = {
    "hidden_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "projection_dim": 16,
}
BLIP = {"text_config": BERT, "vision_config": VISION, "projection_dim": 16, "image_text_hidden_size": 20}
BLIP2 = {
    "text_config": OPT,
    "vision_config": VISION,
    "qformer_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 44,
        "vocab_size": 50,
        "max_position_embeddings": 32,
        "encoder_hidden_size": 24,
        "cross_attention_frequency": 2,
    },
    "num_query_tokens": 4,
    "image_token_index": 49,
}
CHAMELEON = {
    **NO_HEAD_DIM,
    "vq_config": {
        "embed_dim": 4,
        "num_embeddings": 20,
        "latent_channels": 4,
        "base_channels": 32,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "resolution": 16,
        "attn_resolutions": [],
    },
    "vocabulary_map": {"<image>": 48},
}


def _mrope(section: list[int], **others: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": section, "rope_theta": 1e4, **others}}


GLM_TEXT = {**NO_HEAD_DIM, **_mrope([2, 2, 2], partial_rotary_factor=1.0)}
GLM_VISION = {**QWEN_VISION, "intermediate_size": 28, "image_size": 16}

DOTS_ENCODER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}

# Each case: class in transformers, config class, settings.
IMAGE_TEXT: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"{name}-images": (
            "Glm46VForConditionalGeneration",
            f"{name}Config",
            {**GLM_TOKENS, "text_config": GLM_TEXT, "vision_config": GLM_VISION},
        )
        for name in ("Glm46V", "Glmga")
    },
    # Encoders and language models alone.
    **{
        f"{name}-vision": (
            f"{name}VisionModel",
            f"{name}VisionConfig",
            {**GLM_VISION, "out_hidden_size": 20},
        )
        for name in ("Glm4v", "GlmOcr")
    },
    "Qwen3VL-vision": (
        "Qwen3VLVisionModel",
        "Qwen3VLVisionConfig",
        {**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
    "VideoLlama3-vision": ("VideoLlama3VisionModel", "VideoLlama3VisionConfig", {**VISION, "hidden_size": 32}),
    "Qwen3VL-text": ("Qwen3VLTextModel", "Qwen3VLTextConfig", {**TEXT, **_mrope([1, 1, 2])}),
    "HunYuanVL-text": ("HunYuanVLTextModel", "HunYuanVLTextConfig", {**TEXT, **_mrope([1, 1, 1, 1])}),
    **{
        f"{name}-text": (f"{name}TextModel", f"{name}TextConfig", {**TEXT, "logits_scaling": 3.0})
        for name in ("GraniteDocling", "Granite4Vision")
    },
    "Ovis2-images": (
        "Ovis2ForConditionalGeneration",
        "Ovis2Config",
        {
            "text_config": {**NO_HEAD_DIM, "model_type": "qwen2"},
            "vision_config": {**VISION, "vocab_size": 20, "num_visual_indicator_tokens": 2},
            "image_token_id": 49,
            "visual_indicator_token_ids": [47, 48],
            "hidden_size": 48,
            "vocab_size": 50,
        },
    ),
    "GraniteDocling-images": (
        "GraniteDoclingForConditionalGeneration",
        "GraniteDoclingConfig",
        {
            "text_config": {**TEXT, "logits_scaling": 3.0},
            "vision_config": {
                **VISION,
                "out_hidden_size": 48,
                "scale_factor": 2,
                "deepstack_visual_indexes": [0],
            },
            "image_token_id": 49,
            "pad_token_id": 0,
        },
    ),
    "Granite4Vision-images": (
        "Granite4VisionForConditionalGeneration",
        "Granite4VisionConfig",
        {
            "text_config": {**NO_HEAD_DIM, "logits_scaling": 3.0},
            "vision_config": {**VISION, "hidden_size": 64, "model_type": "clip_vision_model", "projection_dim": 16},
            "qformer_config": {"model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 24},
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-2, 0]],
            "spatial_target_layers": [0, 0, 1, 1],
            "image_grid_pinpoints": [[32, 32]],
            "image_token_index": 49,
            "pad_token_id": 0,
        },
    ),
    "ShieldGemma2-images": (
        "ShieldGemma2ForImageClassification",
        "ShieldGemma2Config",
        {
            "text_config": {**TEXT, "sliding_window": 6},
            "vision_config": SIGLIP,
            "mm_tokens_per_image": 4,
            "yes_token_index": 3,
            "no_token_index": 4,
            "image_token_index": 49,
            "boi_token_index": 48,
            "eoi_token_index": 47,
        },
    ),
    "LightOnOcr-images": (
        "LightOnOcrForConditionalGeneration",
        "LightOnOcrConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen3"},
            "vision_config": {**VISION, "model_type": "pixtral", "head_dim": 6},
            "image_token_id": 49,
        },
    ),
    "VideoLlava-images": (
        "VideoLlavaForConditionalGeneration",
        "VideoLlavaConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
            "image_token_index": 49,
            "video_token_index": 48,
        },
    ),
    "Lfm2Vl-images": (
        "Lfm2VlForConditionalGeneration",
        "Lfm2VlConfig",
        {
            "text_config": {
                **NO_HEAD_DIM,
                "layer_types": ["conv", "full_attention"],
                "block_auto_adjust_ff_dim": False,
            },
            "vision_config": {
                **{key: value for key, value in VISION.items() if key != "image_size"},
                "num_patches": 16,
                "vision_use_head": False,
            },
            "projector_hidden_size": 20,
            "image_token_id": 49,
        },
    ),
    "DeepseekVL-images": (
        "DeepseekVLForConditionalGeneration",
        "DeepseekVLConfig",
        {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": SIGLIP, "image_token_id": 49},
    ),
    "HyperCLOVAXVision-images": (
        "HyperCLOVAXVisionV2ForConditionalGeneration",
        "HyperCLOVAXVisionV2Config",
        {
            "text_config": {**TEXT, "model_type": "hyperclovax"},
            "vision_config": {**QWEN_VISION, "out_hidden_size": 20, "window_size": 16, "fullatt_block_indexes": [1]},
            "image_token_id": 49,
            "video_token_id": 48,
        },
    ),
    "VideoLlama3-images": (
        "VideoLlama3ForConditionalGeneration",
        "VideoLlama3Config",
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "vision_config": {**VISION, "hidden_size": 32},
            "image_token_id": 49,
            "video_token_id": 48,
        },
    ),
    "Glm4vMoe-images": (
        "Glm4vMoeForConditionalGeneration",
        "Glm4vMoeConfig",
        {
            **GLM_TOKENS,
            "text_config": {
                **NO_HEAD_DIM,
                **_mrope([2, 2, 2], partial_rotary_factor=1.0),
                "moe_intermediate_size": 12,
                "n_routed_experts": 8,
                "n_group": 2,
                "topk_group": 1,
                "num_experts_per_tok": 2,
                "first_k_dense_replace": 1,
            },
            "vision_config": GLM_VISION,
        },
    ),
    "GlmOcr-images": (
        "GlmOcrForConditionalGeneration",
        "GlmOcrConfig",
        {
            **GLM_TOKENS,
            "text_config": {**TEXT, "head_dim": 12, **_mrope([2, 2, 2], partial_rotary_factor=1.0)},
            "vision_config": {**GLM_VISION, "out_hidden_size": 48},
        },
    ),
    "Exaone45-images": (
        "Exaone4_5_ForConditionalGeneration",
        "Exaone4_5_Config",
        {
            "text_config": {
                **TEXT,
                "model_type": "exaone4",
                "sliding_window": 6,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": {
                **QWEN_VISION,
                "num_key_value_heads": 2,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
            **TOKENS,
        },
    ),
    "PaddleOCRVL-images": (
        "PaddleOCRVLForConditionalGeneration",
        "PaddleOCRVLConfig",
        {
            **TOKENS,
            "text_config": {**TEXT, **_mrope([1, 1, 2])},
            "vision_config": {**VISION, "hidden_size": 32},
        },
    ),
    "Lfm3Vl-images": (
        "Lfm3VlForConditionalGeneration",
        "Lfm3VlConfig",
        {
            **TOKENS,
            "text_config": {**TEXT, "layer_types": ["conv", "full_attention"]},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 36,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "layer_types": ["conv", "full_attention"],
                "patch_size": 4,
            },
            "projector_hidden_size": 20,
        },
    ),
    "CohereCompass-images": (
        "CohereCompassForConditionalGeneration",
        "CohereCompassConfig",
        {
            **TOKENS,
            "text_config": {
                **TEXT,
                "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
            },
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        },
    ),
    "Aria-images": (
        "AriaForConditionalGeneration",
        "AriaConfig",
        {
            "text_config": {**TEXT, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 2},
            "vision_config": {**VISION, "model_type": "idefics3_vision"},
            "projector_patch_to_query_dict": {16: 4},
            "image_token_index": 49,
        },
    ),
    "DeepseekVLHybrid-images": (
        "DeepseekVLHybridForConditionalGeneration",
        "DeepseekVLHybridConfig",
        {
            "text_config": {**TEXT, "model_type": "llama"},
            "vision_config": SIGLIP,
            "high_res_vision_config": {
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
            "image_token_id": 49,
        },
    ),
    "Qwen25Omni-images": (
        "Qwen2_5OmniThinkerForConditionalGeneration",
        "Qwen2_5OmniThinkerConfig",
        {
            **{f"{name}_token_index": place for name, place in OMNI_TOKENS.items()},
            "vision_start_token_id": 46,
            "text_config": {**NO_HEAD_DIM, **_mrope([2, 2, 2])},
            "vision_config": {**QWEN_VISION, "window_size": 16, "fullatt_block_indexes": [1]},
            "audio_config": OMNI_AUDIO,
        },
    ),
    "Qwen3Omni-images": (
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        "Qwen3OmniMoeThinkerConfig",
        {
            **{f"{name}_token_id": place for name, place in OMNI_TOKENS.items()},
            "vision_start_token_id": 46,
            "text_config": {
                **TEXT,
                **_mrope([1, 1, 2]),
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 12,
            },
            "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
            "audio_config": {**OMNI_AUDIO, "downsample_hidden_size": 8, "n_window": 50, "n_window_infer": 100},
        },
    ),
    "Blip-images": ("BlipForConditionalGeneration", "BlipConfig", BLIP),
    "Blip-retrieval": ("BlipForImageTextRetrieval", "BlipConfig", BLIP),
    "Blip-both": ("BlipModel", "BlipConfig", BLIP),
    "Blip2-images": ("Blip2ForConditionalGeneration", "Blip2Config", BLIP2),
    "Blip2-t5-images": (
        "Blip2ForConditionalGeneration",
        "Blip2Config",
        {**BLIP2, "text_config": {**T5, "model_type": "t5"}},
    ),
    "AltCLIP-both": (
        "AltCLIPModel",
        "AltCLIPConfig",
        {
            "text_config": {**BERT, "type_vocab_size": 1, "project_dim": 28},
            "vision_config": {**VISION, "projection_dim": 20},
            "projection_dim": 20,
        },
    ),
    "GroupViT-both": (
        "GroupViTModel",
        "GroupViTConfig",
        {
            "text_config": {**BERT, "eos_token_id": 49},
            "vision_config": {
                **VISION,
                "hidden_size": 32,
                "depths": [1, 1, 1],
                "num_group_tokens": [6, 4, 0],
                "num_output_groups": [6, 4, 0],
            },
            "projection_dim": 16,
            "projection_intermediate_dim": 20,
        },
    ),
    "Kosmos2-images": (
        "Kosmos2ForConditionalGeneration",
        "Kosmos2Config",
        {
            "text_config": {
                "vocab_size": 50,
                "max_position_embeddings": 64,
                "embed_dim": 32,
                "layers": 2,
                "ffn_dim": 40,
                "attention_heads": 4,
            },
            "vision_config": VISION,
            "latent_query_num": 4,
        },
    ),
    "Kosmos25": (
        "Kosmos2_5ForConditionalGeneration",
        "Kosmos2_5Config",
        {
            "text_config": {
                "vocab_size": 50,
                "max_position_embeddings": 64,
                "embed_dim": 32,
                "layers": 2,
                "ffn_dim": 40,
                "attention_heads": 4,
                "pad_token_id": 0,
            },
            "vision_config": {
                "hidden_size": 24,
                "patch_embed_hidden_size": 12,
                "intermediate_size": 36,
                "head_dim": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_num_patches": 20,
            },
            "latent_query_num": 5,
        },
    ),
    "Pix2Struct": (
        "Pix2StructForConditionalGeneration",
        "Pix2StructConfig",
        {
            "text_config": {
                "vocab_size": 50,
                "hidden_size": 32,
                "d_kv": 8,
                "d_ff": 40,
                "num_layers": 2,
                "num_heads": 4,
            },
            "vision_config": {
                "hidden_size": 32,
                "patch_embed_hidden_size": 12,
                "d_kv": 5,
                "d_ff": 44,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "seq_len": 16,
            },
            "decoder_start_token_id": 0,
        },
    ),
    "Udop": (
        "UdopForConditionalGeneration",
        "UdopConfig",
        {**T5, "image_size": 32, "patch_size": 8, "max_2d_position_embeddings": 64},
    ),
    **{
        f"{name}-objects": (
            f"{name}ForObjectDetection",
            f"{name}Config",
            {
                "text_config": {**BERT, "max_position_embeddings": 16},
                "vision_config": VISION,
                "projection_dim": 40,
            },
        )
        for name in ("OwlViT", "Owlv2")
    },
    "Align-both": (
        "AlignModel",
        "AlignConfig",
        {
            "text_config": BERT,
            "vision_config": {
                "width_coefficient": 0.25,
                "depth_coefficient": 1.0,
                "in_channels": [32, 16],
                "out_channels": [16, 48],
                "strides": [1, 2],
                "kernel_sizes": [3, 5],
                "num_block_repeats": [1, 2],
                "expand_ratios": [1, 3],
                "hidden_dim": 320,
                "image_size": 32,
            },
            "projection_dim": 16,
        },
    ),
    "Janus-images": (
        "JanusForConditionalGeneration",
        "JanusConfig",
        {
            "text_config": {**NO_HEAD_DIM, "model_type": "llama"},
            "vision_config": {
                **{key: VISION[key] for key in VISION if key != "intermediate_size"},
                "projection_dim": 48,
                "mlp_ratio": 1.5,
                "depth": 3,
            },
            "vq_config": {
                "embed_dim": 4,
                "num_embeddings": 20,
                "latent_channels": 8,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "projection_dim": 48,
                "image_token_embed_dim": 48,
            },
            "image_token_id": 49,
        },
    ),
    "InstructBlipVideo": (
        "InstructBlipVideoForConditionalGeneration",
        "InstructBlipVideoConfig",
        {**{key: BLIP2[key] for key in BLIP2 if key != "image_token_index"}, "video_token_index": 49},
    ),
    "InstructBlip-images": ("InstructBlipForConditionalGeneration", "InstructBlipConfig", BLIP2),
    "InstructBlip-llama-images": (
        "InstructBlipForConditionalGeneration",
        "InstructBlipConfig",
        {**BLIP2, "text_config": {**NO_HEAD_DIM, "model_type": "llama"}},
    ),
    "Idefics2-images": (
        "Idefics2ForConditionalGeneration",
        "Idefics2Config",
        {
            "text_config": {**NO_HEAD_DIM, "model_type": "mistral"},
            "vision_config": VISION,
            "perceiver_config": {
                "hidden_size": 48,
                "resampler_n_latents": 3,
                "resampler_depth": 1,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            },
            "image_token_id": 49,
        },
    ),
    "Florence2-images": (
        "Florence2ForConditionalGeneration",
        "Florence2Config",
        {
            "text_config": {**BART, "model_type": "bart", "max_position_embeddings": 128},
            "vision_config": {
                "embed_dim": [8, 16],
                "num_heads": [2, 2],
                "num_groups": [2, 2],
                "depths": [1, 1],
                "patch_size": [7, 3],
                "patch_stride": [4, 2],
                "patch_padding": [3, 1],
                "patch_prenorm": [False, True],
                "window_size": 4,
                "projection_dim": 32,
            },
            "image_token_id": 49,
        },
    ),
    "Chameleon": ("ChameleonForConditionalGeneration", "ChameleonConfig", CHAMELEON),
    "Chameleon-swin": (
        "ChameleonForConditionalGeneration",
        "ChameleonConfig",
        {**CHAMELEON, "swin_norm": True, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "Dots3Note-images": (
        "Dots3NoteForConditionalGeneration",
        "Dots3NoteConfig",
        {
            "text_config": decoders.MODELS["Dots3NoteText-untied"][2],
            "vision_config": {
                **DOTS_ENCODER,
                "adapter_in_dim": 16,
                "adapter_out_dim": 48,
                "mlp_layer_types": ["dense", "dense"],
                "patch_size": 4,
            },
            "audio_config": {
                **DOTS_ENCODER,
                "feature_size": 16,
                "downsample_hidden_size": 8,
                "adapter_input_size": 16,
                "adapter_out_dim": 48,
            },
            "image_token_id": 49,
            "video_token_id": 48,
            "audio_token_id": 47,
        },
    ),
}

# Tried in full only by `pytest -m slow`.
RARE = frozenset(IMAGE_TEXT) - {"Lfm2Vl-images", "Glm4vMoe-images"}
