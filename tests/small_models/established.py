"""Tiny models of the families that the tables in recipes/README.md have whole."""

from __future__ import annotations

from typing import Any

from small_models.sizes import NO_HEAD_DIM
from small_models.sizes import TEXT as SIZES

ENCODER = {key: value for key, value in NO_HEAD_DIM.items() if key != "num_key_value_heads"}
STABLELM = {**SIZES, "head_dim": None, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50, "n_positions": 64}
GPT_NEO = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 1]],
    "vocab_size": 50,
    "window_size": 6,
    "max_position_embeddings": 64,
}
OPT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 40,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 40, "vocab_size": 50}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "num_labels": 3}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [2, 1], "num_stages": 2, "num_labels": 3}
SWIN = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "image_size": 32, "patch_size": 4, "window_size": 4}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {**{key: value for key, value in VIT.items() if key != "intermediate_size"}, "hidden_size": 48}
T5 = {
    "d_model": 32,
    "num_layers": 2,
    "num_heads": 4,
    "d_kv": 6,
    "d_ff": 40,
    "vocab_size": 50,
    "decoder_start_token_id": 0,
}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 24,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WHISPER = {
    **BART,
    "num_mel_bins": 10,
    "max_source_positions": 16,
    "max_target_positions": 32,
    "decoder_start_token_id": 1,
}
MLA = {
    "kv_lora_rank": 10,
    "q_lora_rank": 14,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 7,
    "num_key_value_heads": 4,
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
DEEPSEEK = {
    **NO_HEAD_DIM,
    **MLA,
    **MOE,
    "n_routed_experts": 4,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
MAMBA = {"hidden_size": 48, "num_hidden_layers": 2, "vocab_size": 50, "state_size": 6}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 32,
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

# Each case: class in transformers, config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"{name}-{'tied' if tied else 'untied'}": (
            f"{name}ForCausalLM",
            f"{name}Config" if name not in ("Gemma3", "Llama4") else f"{name}TextConfig",
            {**SIZES, **more, "tie_word_embeddings": tied},
        )
        for name, more in (
            ("Llama", {"attention_bias": True, "mlp_bias": True}),
            ("Mistral", {"sliding_window": 6}),
            ("Qwen2", {}),
            ("SmolLM3", {}),
            ("SeedOss", {}),
            ("Ernie4_5", {"use_bias": True}),
            ("Helium", {"hidden_size": 32}),
            ("Nemotron", {}),
            ("Arcee", {}),
            ("Apertus", {}),
            ("Phi3", {}),
            ("Glm4", {}),
            ("Starcoder2", {}),
            ("Granite", {"logits_scaling": 3.0, "residual_multiplier": 0.5}),
            ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 3.0}),
            ("GraniteMoeShared", {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24}),
            ("Cohere", {"use_qk_norm": True}),
            ("Cohere2", {}),
            ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
            (
                "Qwen2Moe",
                {
                    **MOE,
                    "num_experts": 4,
                    "shared_expert_intermediate_size": 20,
                    "mlp_only_layers": [0],
                    "decoder_sparse_step": 1,
                },
            ),
            ("Qwen3Moe", {**MOE, "num_experts": 4, "mlp_only_layers": [0]}),
            (
                "Dots1",
                {
                    **MOE,
                    "n_routed_experts": 4,
                    "n_shared_experts": 2,
                    "first_k_dense_replace": 1,
                    "n_group": 1,
                    "topk_group": 1,
                },
            ),
            ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6}),
            (
                "Llama4",
                {"num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size_mlp": 20, "moe_layers": [1]},
            ),
            ("Qwen3", {}),
            ("Olmo2", {}),
            ("Olmo3", {}),
            ("Exaone4", {}),
            ("Gemma", {}),
            ("Gemma2", {}),
            ("Gemma3", {}),
            ("VaultGemma", {}),
            ("Lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": True, "conv_bias": True}),
            (
                "FalconH1",
                {
                    "mamba_d_ssm": 96,
                    "mamba_n_heads": 12,
                    "mamba_d_head": 8,
                    "mamba_n_groups": 2,
                    "mamba_d_state": 6,
                    "lm_head_multiplier": 0.5,
                },
            ),
        )
        for tied in (False, True)
    },
    **{
        f"{name}-{'tied' if tied else 'untied'}": (
            f"{name}ForCausalLM",
            f"{name}Config",
            {**settings, "tie_word_embeddings": tied},
        )
        for name, settings in (
            ("Phi", {**NO_HEAD_DIM, "qk_layernorm": True}),
            ("Persimmon", ENCODER),
            ("Olmoe", {**NO_HEAD_DIM, "num_experts": 4, "num_experts_per_tok": 2}),
            ("DeepseekV2", DEEPSEEK),
            ("DeepseekV3", {**DEEPSEEK, "head_dim": 4}),
            ("MiniCPM3", {**NO_HEAD_DIM, **MLA, "dim_model_base": 12}),
            ("GPTNeoX", {**SIZES, "head_dim": None}),
            ("GPTNeo", {**GPT_NEO, "intermediate_size": 40}),
            ("GPTJ", {**GPT2, "rotary_dim": 4}),
            ("CodeGen", {**GPT2, "n_head": 4, "rotary_dim": 4}),
            ("OPT", OPT),
            ("BioGpt", {**ENCODER, "max_position_embeddings": 64}),
            ("Bloom", {"hidden_size": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50}),
            ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 50}),
            ("XGLM", {"d_model": 32, "attention_heads": 4, "num_layers": 2, "ffn_dim": 40, "vocab_size": 50}),
            ("Mamba", {**MAMBA, "time_step_rank": 5}),
            ("FalconMamba", {**MAMBA, "time_step_rank": 5}),
            ("Mamba2", {**MAMBA, "num_heads": 12, "head_dim": 8, "n_groups": 2}),
        )
        for tied in (False, True)
    },
    "Olmo-untied": ("OlmoForCausalLM", "OlmoConfig", {**SIZES, "tie_word_embeddings": False}),
    "NanoChat-untied": ("NanoChatForCausalLM", "NanoChatConfig", {**SIZES, "tie_word_embeddings": False}),
    "DeepseekV2-lite": ("DeepseekV2ForCausalLM", "DeepseekV2Config", {**DEEPSEEK, "q_lora_rank": None}),
    "GPT2-untied": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "tie_word_embeddings": False}),
    "GPT2-tied": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "n_inner": 40}),
    "GPTBigCode-multi": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", {**GPT2, "multi_query": True}),
    "GPTBigCode-heads": ("GPTBigCodeForCausalLM", "GPTBigCodeConfig", {**GPT2, "multi_query": False}),
    "GPT2-heads": ("GPT2DoubleHeadsModel", "GPT2Config", {**GPT2, "add_cross_attention": True, "num_labels": 1}),
    "OPT-projected-classifier": ("OPTForSequenceClassification", "OPTConfig", {**OPT, "word_embed_proj_dim": 16}),
    "OPT-projected": ("OPTForCausalLM", "OPTConfig", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "Falcon-multi": ("FalconForCausalLM", "FalconConfig", {**FALCON, "bias": True}),
    "Falcon-groups": (
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True, "tie_word_embeddings": False},
    ),
    "Falcon-alibi": (
        "FalconForCausalLM",
        "FalconConfig",
        {**FALCON, "multi_query": False, "alibi": True, "bias": True, "parallel_attn": False},
    ),
    **{
        f"StableLm-{'parallel' if parallel else 'serial'}": (
            "StableLmForCausalLM",
            "StableLmConfig",
            {**STABLELM, "use_parallel_residual": parallel, "tie_word_embeddings": parallel, "qk_layernorm": parallel},
        )
        for parallel in (False, True)
    },
    "Bert-tied": ("BertForMaskedLM", "BertConfig", ENCODER),
    "Bert-pooler": ("BertForSequenceClassification", "BertConfig", ENCODER),
    "Bert-pretraining": ("BertForPreTraining", "BertConfig", {**ENCODER, "tie_word_embeddings": False}),
    "Roberta-tied": ("RobertaForMaskedLM", "RobertaConfig", {**ENCODER, "max_position_embeddings": 64}),
    "Roberta-causal": ("RobertaForCausalLM", "RobertaConfig", {**ENCODER, "is_decoder": True}),
    "Roberta-classifier": ("RobertaForSequenceClassification", "RobertaConfig", ENCODER),
    "Roberta-tokens": ("RobertaForTokenClassification", "RobertaConfig", ENCODER),
    "XLMRoberta-tied": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", {**ENCODER, "max_position_embeddings": 64}),
    "Camembert-tied": ("CamembertForMaskedLM", "CamembertConfig", {**ENCODER, "max_position_embeddings": 64}),
    "DistilBert-tied": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "vocab_size": 50},
    ),
    "DistilBert-classifier": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "vocab_size": 50},
    ),
    "Electra-tied": ("ElectraForMaskedLM", "ElectraConfig", {**ENCODER, "embedding_size": 16}),
    "Electra-discriminator": ("ElectraForPreTraining", "ElectraConfig", {**ENCODER, "embedding_size": 48}),
    "Electra-classifier": ("ElectraForSequenceClassification", "ElectraConfig", {**ENCODER, "embedding_size": 16}),
    "ModernBert-tied": ("ModernBertForMaskedLM", "ModernBertConfig", ENCODER),
    "ModernBert-classifier": ("ModernBertForSequenceClassification", "ModernBertConfig", ENCODER),
    "DebertaV2-shared": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        {
            **ENCODER,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_buckets": 8,
            "conv_kernel_size": 3,
            "conv_act": "gelu",
        },
    ),
    "DebertaV2-classifier": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    "T5-tied": ("T5ForConditionalGeneration", "T5Config", T5),
    "T5-gated": (
        "T5ForConditionalGeneration",
        "T5Config",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "T5-encoder": ("T5EncoderModel", "T5Config", T5),
    "MT5-gated": ("MT5ForConditionalGeneration", "MT5Config", T5),
    "Bart-tied": ("BartForConditionalGeneration", "BartConfig", {**BART, "scale_embedding": True}),
    "Bart-plain": ("BartForConditionalGeneration", "BartConfig", BART),
    "Bart-classifier": ("BartForSequenceClassification", "BartConfig", BART),
    "Whisper-tied": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
    "ViT-classifier": ("ViTForImageClassification", "ViTConfig", VIT),
    "ViT-pooler": ("ViTModel", "ViTConfig", VIT),
    "DeiT-teacher": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", VIT),
    "Dinov2-classifier": ("Dinov2ForImageClassification", "Dinov2Config", DINO),
    "Dinov2-gated": ("Dinov2ForImageClassification", "Dinov2Config", {**DINO, "use_swiglu_ffn": True}),
    "Swin-classifier": ("SwinForImageClassification", "SwinConfig", SWIN),
    "ConvNext-classifier": ("ConvNextForImageClassification", "ConvNextConfig", CONVNEXT),
    "ConvNextV2-classifier": ("ConvNextV2ForImageClassification", "ConvNextV2Config", CONVNEXT),
    "CLIPText-projection": ("CLIPTextModelWithProjection", "CLIPTextConfig", {**TEXT, "projection_dim": 16}),
    "CLIPVision-projection": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VISION, "projection_dim": 16}),
    "CLIP-both": (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": {**TEXT, "eos_token_id": 49}, "vision_config": VISION, "projection_dim": 16},
    ),
    "SiglipText-head": ("SiglipTextModel", "SiglipTextConfig", {**TEXT, "projection_size": 24}),
    "SiglipVision-head": ("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "Siglip-both": (
        "SiglipModel",
        "SiglipConfig",
        {"text_config": {**TEXT, "projection_size": 24}, "vision_config": VISION},
    ),
    "Gemma3-images": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text_config": SIZES,
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 47,
            "boi_token_index": 48,
            "eoi_token_index": 49,
        },
    ),
    "Llava-clip": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {**SIZES, "model_type": "llama"},
            "image_token_index": 49,
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 16},
        },
    ),
    "Llava-siglip": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {**SIZES, "model_type": "qwen3"},
            "image_token_index": 49,
            "vision_feature_select_strategy": "full",
            "tie_word_embeddings": True,
            "vision_config": {**VISION, "model_type": "siglip_vision_model"},
        },
    ),
    "Qwen2VL-images": (
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": {**NO_HEAD_DIM, "hidden_size": 32, **MROPE},
            "image_token_id": 49,
            "video_token_id": 48,
            "vision_start_token_id": 47,
            "vision_end_token_id": 46,
            "vision_config": {
                "depth": 2,
                "embed_dim": 24,
                "hidden_size": 32,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 4,
            },
        },
    ),
    "Qwen25VL-images": (
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {
            "text_config": {**NO_HEAD_DIM, "hidden_size": 32, **MROPE},
            "image_token_id": 49,
            "video_token_id": 48,
            "vision_start_token_id": 47,
            "vision_end_token_id": 46,
            "vision_config": {
                "depth": 2,
                "hidden_size": 24,
                "out_hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 36,
                "patch_size": 4,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
        },
    ),
    "Qwen3VL-images": (
        "Qwen3VLForConditionalGeneration",
        "Qwen3VLConfig",
        {
            "text_config": {**SIZES, **MROPE},
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
    "ResNet-basic": ("ResNetForImageClassification", "ResNetConfig", {**RESNET, "layer_type": "basic"}),
    "ResNet-bottleneck": ("ResNetForImageClassification", "ResNetConfig", {**RESNET, "layer_type": "bottleneck"}),
}

# Cases of model types that are only names in a recipe of which another case is tried by default.
ONLY_NAMES = frozenset(
    {
        *("Ernie-tied", "Data2VecText-tied", "BigBird-tied", "LayoutLM-tied", "XLMRobertaXL-tied"),
        *("RobertaPreLayerNorm-tied", "Blenderbot-tied", "PLBart-tied", "Mvp-tied", "PegasusX-tied"),
        *("Hubert-group", "UniSpeech-group", "UniSpeechSat-group", "Data2VecVision-classifier"),
        *("BlenderbotSmall-tied", "IJepa", "UMT5-gated", "LongT5-tied", "M2M100-tied"),
        *("LlavaNext-clip", "LlavaNextVideo-clip"),
        *("Ministral-tied", "Ministral3-tied", "Cwm-tied", "InternLM3-tied", "IQuestCoder-tied"),
        *("Apertus1p5Text-tied", "SolarOpen-tied", "AXK1-tied", "SarvamMLA-tied", "Youtu-tied"),
        *("GlmMoeDsa-tied", "Mellum-tied", "Flint-tied", "Qwen3_5MoeText-tied", "Gemma4UnifiedText-tied"),
        *("HYV3-tied", "HyperCLOVAX-tied", "Kolibri1-tied", "Lfm3-tied", "SeedOss-tied"),
        *("Arcee-tied", "Mistral-tied", "GraniteMoeSWA-tied", "SarvamMoE-tied", "CohereCompassText-tied"),
        *("ModernBertDecoder-tied", "GPTNeoXJapanese-tied", "CTRL-tied", "BailingHybrid-tied", "Qwen35-images"),
        *("Cohere2Moe-tied", "LaraMini-tied", "OlmoHybrid-tied"),
        *(
            "Gemma3n-images",
            "Gemma4-images",
            "Gemma4Unified-images",
            "Fuyu-images",
            "GotOcr2-images",
            "PPChart2Table-images",
            "Mllama-images",
        ),
        *("Emu3-images", "Git-images", "Phi4-images", "Qwen4Exp-images"),
        *("Qwen3VLMoe-images", "Glm4v-images", "AyaVision-siglip", "Cohere2Vision-siglip"),
    }
)
