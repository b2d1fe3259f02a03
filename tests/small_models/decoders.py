"""Cases of `helpers.MODELS`: tiny causal language models of 2024 to 2026."""

from __future__ import annotations

from typing import Any

from small_models.sizes import TEXT as SIZES

# Some configs require hidden_size to be a multiple of the number of heads despite head_dim.
DERIVED_HEADS = {key: value for key, value in SIZES.items() if key != "head_dim"}
EXPERTS = {"moe_intermediate_size": 12, "num_experts_per_tok": 2}
ROUTED = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 2, "n_group": 2, "topk_group": 1}
DENSE_FIRST = {"mlp_layer_types": ["dense", "sparse"]}
LATENT = {
    "kv_lora_rank": 10,
    "q_lora_rank": 14,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 7,
    "num_key_value_heads": 4,
}
INDEXER = {"index_n_heads": 2, "index_head_dim": 6, "index_topk": 2}
DELTA = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 3,
}
EXPERTS_4 = {"num_experts": 4, "num_shared_experts": 2}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
MIXTURE = {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 20}

SHARED = {"shared_expert_intermediate_size": 20}
CONVOLUTIONS = {"layer_types": ["conv", "full_attention"], "conv_bias": True}
ERNIE = {
    "moe_intermediate_size": 12,
    "moe_num_experts": 4,
    "moe_k": 2,
    "moe_num_shared_experts": 2,
    "moe_layer_start_index": 1,
}
MIXER = {"mamba_n_heads": 12, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 6, "mamba_expand": 2}
GRANITE = {
    "layer_types": ["linear_attention", "full_attention"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 24,
    "logits_scaling": 3.0,
}
NEMOTRON = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
    "num_hidden_layers": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 6,
    "n_groups": 2,
    "ssm_state_size": 5,
    "n_routed_experts": 4,
    "moe_intermediate_size": 12,
    "moe_shared_expert_intermediate_size": 20,
    "moe_latent_size": 14,
}
PER_LAYER = {**SLIDING, "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 50}

SHARED_KEYS = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "laurel_rank": 5,
}
SARVAM = {
    **EXPERTS,
    "num_experts": 4,
    "num_shared_experts": 2,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
# transformers saves thirds of the delta nets' convolutions, which are queries, keys and values only at equal sizes.
EQUAL_DELTA = {**DELTA, "linear_key_head_dim": 10}
COHERE = {
    "mlp_layer_types": ["dense", "sparse"],
    "prefix_dense_intermediate_size": 28,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_shared_experts": 2,
    "sliding_window": 6,
}
HEADS_BY_LAYER = {"num_attention_heads_per_layer": [4, 6], "mlp_layer_types": ["dense", "sparse"], "sliding_window": 6}
ROPE = {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
LONGCAT = {
    "num_layers": 2,
    "head_dim": 4,
    "ffn_hidden_size": 40,
    "expert_ffn_hidden_size": 12,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
}
KIMI = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_heads": 2,
    "linear_head_dim": 6,
    "kv_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 7,
    "num_experts": 4,
    "num_experts_per_token": 2,
    "moe_intermediate_size": 12,
    "num_shared_experts": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "mlp_layer_types": ["dense", "sparse"],
}
HEADS_4 = {"num_key_value_heads": 4, "head_dim": 4}
MIMO = {
    **EXPERTS,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "v_head_dim": 7,
    "layer_types": ["full_attention", "sliding_attention"],
    "mlp_layer_types": ["dense", "sparse"],
    "sliding_window": 6,
}
MINIMAX = {
    "layer_types": ["full_attention", "linear_attention"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "block_size": 8,
}
JAMBA = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_d_state": 6,
    "mamba_dt_rank": 5,
    "use_mamba_kernels": False,
}
GRIFFIN = {
    "block_types": ["recurrent", "attention"],
    "lru_width": 32,
    "attention_window_size": 6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
}
M3 = {
    "dense_intermediate_size": 28,
    "shared_intermediate_size": 20,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "rotary_dim": 8,
}
DOTS = {
    "head_dim": 10,
    "shared_experts_intermediate_size": 20,
    "sliding_window": 6,
    "layer_types": ["indexed_attention", "sliding_attention"],
    **{f"swa_{key}": value for key, value in {**LATENT, "num_attention_heads": 2, "num_key_value_heads": 2}.items()},
    "swa_head_dim": 10,
}
QWEN4 = {
    **EXPERTS,
    **DELTA,
    "layer_types": ["linear_attention", "indexed_attention"],
    "num_experts": 4,
    "shared_expert_intermediate_size": 20,
    "hc_count": 3,
    "hc_lowrank": 10,
    "ple_layer_ids": [1],
    "ple_embed_dim": 24,
    "ngram_size": 3,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 20,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 2,
    "eos_token_id": 1,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
}
LAYERED = {key: value for key, value in DERIVED_HEADS.items() if key not in ("num_hidden_layers", "intermediate_size")}

# The beginning of a class's name, its config class, and settings.
DECODERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("Ministral", "MinistralConfig", {**SIZES, "sliding_window": 6}),
    ("Ministral3", "Ministral3Config", SIZES),
    ("Cwm", "CwmConfig", {**SIZES, "sliding_window": 6}),
    ("Llama", "InternLM3Config", SIZES),
    ("Llama", "IQuestCoderConfig", SIZES),
    ("Apertus1p5Text", "Apertus1p5TextConfig", SIZES),
    ("HunYuanDenseV1", "HunYuanDenseV1Config", SIZES),
    ("HunYuanMoEV1", "HunYuanMoEV1Config", {**SIZES, "num_experts": 4, "moe_topk": 2}),
    ("Glm4Moe", "Glm4MoeConfig", {**SIZES, **ROUTED, "first_k_dense_replace": 1, "use_qk_norm": True}),
    ("SolarOpen", "SolarOpenConfig", {**SIZES, **ROUTED}),
    ("ExaoneMoe", "ExaoneMoeConfig", {**SIZES, **ROUTED, **EXPERTS_4, **DENSE_FIRST, **SLIDING}),
    ("HYV3", "HYV3Config", {**SIZES, **EXPERTS, **EXPERTS_4, **DENSE_FIRST}),
    ("Glm4MoeLite", "Glm4MoeLiteConfig", {**DERIVED_HEADS, **LATENT, **ROUTED, **DENSE_FIRST}),
    ("AXK1", "AXK1Config", {**DERIVED_HEADS, **LATENT, **ROUTED, **DENSE_FIRST}),
    ("Mistral4", "Mistral4Config", {**DERIVED_HEADS, **LATENT, **ROUTED, "first_k_dense_replace": 1}),
    ("DeepseekV3", "SarvamMLAConfig", {**DERIVED_HEADS, **LATENT, **ROUTED, "first_k_dense_replace": 1}),
    # Loading it sets the embedding of the padding token to 0, and with it a readout that shares the embedding.
    ("Youtu", "YoutuConfig", {**DERIVED_HEADS, **LATENT, "pad_token_id": None}),
    ("DeepseekV32", "DeepseekV32Config", {**DERIVED_HEADS, **LATENT, **INDEXER, **ROUTED, **DENSE_FIRST}),
    ("GlmMoeDsa", "GlmMoeDsaConfig", {**DERIVED_HEADS, **LATENT, **INDEXER, **ROUTED, **DENSE_FIRST}),
    ("MiniMaxM2", "MiniMaxM2Config", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("Mellum", "MellumConfig", {**SIZES, **EXPERTS, "num_local_experts": 4}),
    ("Flint", "FlintConfig", {**SIZES, **MIXTURE, "mlp_only_layers": [0], "sliding_window": 6}),
    ("Qwen3Next", "Qwen3NextConfig", {**SIZES, **DELTA, **MIXTURE}),
    ("Qwen3_5", "Qwen3_5TextConfig", {**SIZES, **DELTA}),
    ("Qwen3_5Moe", "Qwen3_5MoeTextConfig", {**SIZES, **DELTA, **MIXTURE}),
    ("Llama", "ExaoneConfig", SIZES),
    ("Jais2", "Jais2Config", SIZES),
    ("HyperCLOVAX", "HyperCLOVAXConfig", {**SIZES, "logits_scaling": 3.0}),
    ("GraniteSWA", "GraniteSWAConfig", {**DERIVED_HEADS, "logits_scaling": 3.0, "sliding_window": 6}),
    ("Kolibri1", "Kolibri1Config", {**SIZES, **EXPERTS, **SHARED, "num_local_experts": 4, "sliding_window": 6}),
    ("AriaText", "AriaTextConfig", {**SIZES, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 2}),
    (
        "Phimoe",
        "PhimoeConfig",
        {**DERIVED_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "lm_head_bias": True},
    ),
    ("FlexOlmo", "FlexOlmoConfig", {**DERIVED_HEADS, "num_experts": 4, "num_experts_per_tok": 2}),
    ("Afmoe", "AfmoeConfig", {**SIZES, **EXPERTS, **EXPERTS_4, **SLIDING, "num_dense_layers": 1, "mup_enabled": True}),
    ("Ernie4_5_Moe", "Ernie4_5_MoeConfig", {**DERIVED_HEADS, **ERNIE, "use_bias": True}),
    ("Lfm2Moe", "Lfm2MoeConfig", {**DERIVED_HEADS, **EXPERTS, **CONVOLUTIONS, "num_experts": 4, "num_dense_layers": 1}),
    ("Lfm3", "Lfm3Config", {**SIZES, **CONVOLUTIONS}),
    ("Bamba", "BambaConfig", {**DERIVED_HEADS, **MIXER, "attn_layer_indices": [1]}),
    ("GraniteMoeHybrid", "GraniteMoeHybridConfig", {**DERIVED_HEADS, **MIXER, **GRANITE}),
    ("NemotronH", "NemotronHConfig", {**SIZES, **NEMOTRON}),
    ("Gemma3n", "Gemma3nTextConfig", {**SIZES, **PER_LAYER, **SHARED_KEYS}),
    ("Gemma4", "Gemma4TextConfig", {**SIZES, **PER_LAYER, "global_head_dim": 12}),
    ("Gemma4Unified", "Gemma4UnifiedTextConfig", {**SIZES, **SLIDING, "global_head_dim": 12}),
    (
        "GraniteMoeSWA",
        "GraniteMoeSWAConfig",
        {**DERIVED_HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "logits_scaling": 3.0, "sliding_window": 6},
    ),
    ("Glm4Moe", "SarvamMoEConfig", {**SIZES, **SARVAM}),
    ("OlmoHybrid", "OlmoHybridConfig", {**DERIVED_HEADS, **EQUAL_DELTA}),
    ("CohereCompass", "CohereCompassTextConfig", {**SIZES, "rope_parameters": ROPE}),
    ("Cohere2Moe", "Cohere2MoeConfig", {**SIZES, **COHERE}),
    ("LaraMini", "LaraMiniConfig", {**SIZES, **DELTA, **MIXTURE}),
    ("Laguna", "LagunaConfig", {**SIZES, **MIXTURE, **HEADS_BY_LAYER}),
    (
        "JetMoe",
        "JetMoeConfig",
        {**DERIVED_HEADS, "kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    ("LongcatFlash", "LongcatFlashConfig", {**LAYERED, **LATENT, **LONGCAT}),
    ("KimiLinear", "KimiLinearConfig", {**SIZES, **HEADS_4, **KIMI}),
    ("BailingHybrid", "BailingHybridConfig", {**SIZES, **HEADS_4, **KIMI}),
    ("MiMoV2Flash", "MiMoV2FlashConfig", {**SIZES, **MIMO, "num_attention_heads": 8}),
    ("MiniMax", "MiniMaxConfig", {**SIZES, **MINIMAX}),
    ("Jamba", "JambaConfig", {**DERIVED_HEADS, **JAMBA}),
    ("RecurrentGemma", "RecurrentGemmaConfig", {**SIZES, **GRIFFIN}),
    ("BitNet", "BitNetConfig", DERIVED_HEADS),
    ("Doge", "DogeConfig", {**DERIVED_HEADS, "keep_window_size": 64}),
    ("Beam", "BeamConfig", {**SIZES, **EXPERTS, **SLIDING, "num_experts": 4, "n_group": 2, "topk_group": 1}),
    ("DiffLlama", "DiffLlamaConfig", {**SIZES, "num_key_value_heads": 4}),
    (
        "MiniMaxM3VL",
        "MiniMaxM3VLTextConfig",
        {**SIZES, **M3, "layer_types": ["minimax_m3_sparse", "full_attention"], "mlp_layer_types": ["sparse", "dense"]},
    ),
    ("AXK2", "AXK2Config", {**DERIVED_HEADS, **LATENT, **INDEXER, **ROUTED, **DENSE_FIRST, "gated_norm_rank": 3}),
    ("Qwen4Exp", "Qwen4ExpTextConfig", {**SIZES, **QWEN4}),
    ("Dots3Note", "Dots3NoteTextConfig", {**DERIVED_HEADS, **LATENT, **INDEXER, **ROUTED, **DENSE_FIRST, **DOTS}),
)

HEADS_OF_WIDTH = {key: value for key, value in DERIVED_HEADS.items() if key != "num_key_value_heads"}

ROCBERT = {
    "pronunciation_embed_dim": 12,
    "shape_embed_dim": 20,
    "pronunciation_vocab_size": 50,
    "shape_vocab_size": 50,
    "is_decoder": True,
}
TROCR = {
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 40,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "is_decoder": True,
    "pad_token_id": 0,
    "cross_attention_hidden_size": 20,
}
PROPHETNET = {
    "hidden_size": 32,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 24,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "num_buckets": 8,
}

XLM = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 50, "max_position_embeddings": 64, "n_langs": 2}
CPM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "dim_head": 6,
    "dim_ff": 40,
    "vocab_size": 50,
    "prompt_types": 3,
    "prompt_length": 4,
    "segment_types": 4,
    "position_bias_num_buckets": 16,
    "position_bias_max_distance": 32,
}
DBRX = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 50,
    "max_seq_len": 64,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 2, "rope_theta": 1e4},
    "ffn_config": {"ffn_hidden_size": 12, "moe_num_experts": 4, "moe_top_k": 2},
}
HYBRID = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "pad_token_id": 0,
    "n_mamba_heads": 4,
    "mamba_d_state": 6,
}
ZAMBA = {**HYBRID, "mamba_dt_rank": 5}
ZAMBA2 = {
    **HYBRID,
    "mamba_ngroups": 2,
    "adapter_rank": 5,
    "num_mem_blocks": 1,
    "use_shared_attention_adapter": True,
    "num_key_value_heads": 4,
}
ZAYA = {
    **{key: value for key, value in SIZES.items() if key != "intermediate_size"},
    "moe_intermediate_size": 12,
    "num_experts": 4,
    "router_hidden_size": 14,
    "layer_types": ["hybrid", "hybrid_sliding"],
    "sliding_window": 6,
}

V4 = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 8,
    "qk_rope_head_dim": 4,
    "q_lora_rank": 14,
    "o_groups": 2,
    "o_lora_rank": 6,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 2,
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 50,
    "pad_token_id": 0,
    "sliding_window": 6,
    "hc_sinkhorn_iters": 3,
    "layer_types": ["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
    "mlp_layer_types": ["hash_moe", "moe", "moe"],
    "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    "max_position_embeddings": 64,
}
REFORMER = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "attention_head_size": 12,
    "feed_forward_size": 40,
    "vocab_size": 50,
    "axial_pos_shape": [8, 8],
    "axial_pos_embds_dim": [16, 32],
    "max_position_embeddings": 64,
    "attn_layers": ["local", "lsh"],
    "is_decoder": True,
    "hash_seed": 0,
    "num_buckets": 4,
    "local_attn_chunk_length": 8,
    "lsh_attn_chunk_length": 8,
    "pad_token_id": 0,
}

INKLING = {
    **SIZES,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "moe_intermediate_size": 20,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "d_rel": 6,
    "rel_extent": 10,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 8,
    "sliding_window_size": 6,
    "layer_types": ["hybrid_sliding", "hybrid"],
    "eos_token_id": 2,
    "log_scaling_n_floor": 4,
}
INKLING2 = {
    **INKLING,
    "n_layers_per_attn_res_block": 2,
    "unpadded_vocab_size": 50,
    "num_hidden_layers": 3,
    "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
    "qk_l2_clip_threshold": 1.0,
    "rel_l2_clip_threshold": 0.7,
}
INKLING2.pop("intermediate_size")  # another name of moe_intermediate_size

# Shapes that few people train, whose proofs are slow ones.
RARE = frozenset(
    {
        *("Mistral4-tied", "Mistral4-untied", "Zamba2-biases", "Qwen3Next-biases"),
        *("MiMoV2Flash-tied", "MiniMax-tied", "RecurrentGemma-tied", "BitNet-tied", "DiffLlama-tied", "JetMoe-tied"),
        *("Beam-tied", "Doge-tied", "OpenAIGPT-tied", "Rwkv-untied", "RemBert-untied"),
        "Qwen4ExpText-tied",
        *("MiniMaxM3VLText-tied", "AXK2-tied", "Dots3NoteText-tied", "HYV4-untied", "RoCBert-tied", "Xmod-tied"),
        *("ProphetNet-tied", "ProphetNet-both", "Moshi-untied", "CpmAnt-untied", "Zamba-tied", "Zamba2-tied"),
        *("TrOCR-tied", "HrmText-untied", "XLM-tied", "Reformer-untied", "XLSTM-untied", "Dory-untied"),
        *("InklingText-untied", "Inkling2Text-untied", "Inkling2LoopText-untied"),
    }
)

# What is not compared: classes that put a word to predict behind the prompt have no logits of the prompt, and those
# that write sounds are not asked for text.
NOT_COMPARED: dict[str, set[str]] = {
    "XLM-tied": {"logits of a left-padded batch"},
    "XLNet-tied": {"logits of a left-padded batch"},
    "Musicgen-untied": {"logits of a left-padded batch", "logits of cached generation"},
}

# Classes whose parameters are float32 whatever is asked for, and would round thirds of float64 weights.
FLOAT32 = frozenset({"HYV4-untied", "HYV4VL-images", "DeepseekV4-untied"})

# Parameters whose tensors cannot be named: `attn_queries.N` belongs to block N + 1, and two tensors take turns to give
# the rows of the queries between two passes.
UNNAMED = ("attention_input.query", "message_input.query")

# The types above with a readout of their own and with a tied one, and older types.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"{config.removesuffix('Config')}-{'tied' if tied else 'untied'}": (
            f"{name}ForCausalLM",
            config,
            {**settings, "tie_word_embeddings": tied},
        )
        for name, config, settings in DECODERS
        for tied in (True, False)
    },
    "ModernBertDecoder-tied": (
        "ModernBertDecoderForCausalLM",
        "ModernBertDecoderConfig",
        {**HEADS_OF_WIDTH, "layer_types": ["full_attention", "sliding_attention"], "local_attention": 12},
    ),
    "InklingText-untied": (
        "InklingForCausalLM",
        "InklingTextConfig",
        {**INKLING, "mlp_layer_types": ["dense", "sparse"], "n_shared_experts": 2},
    ),
    "Inkling2Text-untied": ("Inkling2ForCausalLM", "Inkling2TextConfig", INKLING2),
    "Inkling2LoopText-untied": (
        "Inkling2LoopForCausalLM",
        "Inkling2LoopTextConfig",
        {
            **INKLING2,
            "num_hidden_layers": 5,
            "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid", "hybrid_sliding"],
            "loop_layer_index_start": 2,
            "loop_layer_index_end": 4,
            "loop_num_passes": 2,
            "loop_gate_rank": 6,
        },
    ),
    "OpenAIGPT-tied": (
        "OpenAIGPTLMHeadModel",
        "OpenAIGPTConfig",
        {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50, "n_positions": 64},
    ),
    "GPTNeoXJapanese-tied": (
        "GPTNeoXJapaneseForCausalLM",
        "GPTNeoXJapaneseConfig",
        {**HEADS_OF_WIDTH, "intermediate_multiple_size": 2},
    ),
    "Rwkv-untied": (
        "RwkvForCausalLM",
        "RwkvConfig",
        {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "vocab_size": 50,
            "context_length": 64,
        },
    ),
    "CTRL-tied": (
        "CTRLLMHeadModel",
        "CTRLConfig",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 40, "vocab_size": 50, "n_positions": 64},
    ),
    "RoCBert-tied": ("RoCBertForCausalLM", "RoCBertConfig", {**HEADS_OF_WIDTH, **ROCBERT}),
    "Xmod-tied": (
        "XmodForCausalLM",
        "XmodConfig",
        {**HEADS_OF_WIDTH, "languages": ["en_XX", "de_DE"], "default_language": "de_DE", "is_decoder": True},
    ),
    "TrOCR-tied": ("TrOCRForCausalLM", "TrOCRConfig", TROCR),
    "ProphetNet-tied": ("ProphetNetForCausalLM", "ProphetNetConfig", PROPHETNET),
    "ProphetNet-both": (
        "ProphetNetForConditionalGeneration",
        "ProphetNetConfig",
        {**PROPHETNET, "tie_word_embeddings": False},
    ),
    "Moshi-untied": ("MoshiForCausalLM", "MoshiConfig", {**SIZES, "ffn_dim": 80}),
    "HYV4-untied": (
        "HYV4ForCausalLM",
        "HYV4Config",
        {**DERIVED_HEADS, **LATENT, **INDEXER, **ROUTED, **DENSE_FIRST, "indexer_types": ["full", "shared"]},
    ),
    "DeepseekV4-untied": ("DeepseekV4ForCausalLM", "DeepseekV4Config", V4),
    "MllamaText-untied": (
        "MllamaForCausalLM",
        "MllamaTextConfig",
        {**DERIVED_HEADS, "num_hidden_layers": 3, "cross_attention_layers": [1]},
    ),
    "Dory-untied": (
        "DoryForCausalLM",
        "DoryConfig",
        {
            **SIZES,
            "num_hidden_layers": 3,
            "n_input_layers": 1,
            "n_recurrent_layers": 1,
            "n_output_layers": 1,
            "n_recurrent_loops": 2,
        },
    ),
    "XLSTM-untied": (
        "xLSTMForCausalLM",
        "xLSTMConfig",
        {
            "hidden_size": 128,
            "num_heads": 4,
            "num_hidden_layers": 2,
            "num_blocks": 2,
            "vocab_size": 50,
            "chunk_size": 8,
            "ffn_proj_factor": 0.5,
            "ffn_round_up_to_multiple_of": 16,
            "pad_token_id": 0,
        },
    ),
    "Reformer-untied": ("ReformerModelWithLMHead", "ReformerConfig", REFORMER),
    "Musicgen-untied": (
        "MusicgenForCausalLM",
        "MusicgenDecoderConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 40,
            "vocab_size": 50,
            "num_codebooks": 2,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
    ),
    "XLM-tied": ("XLMWithLMHeadModel", "XLMConfig", {**XLM, "causal": True}),
    "XLNet-tied": (
        "XLNetLMHeadModel",
        "XLNetConfig",
        {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 40, "vocab_size": 50, "pad_token_id": 0},
    ),
    "CpmAnt-untied": ("CpmAntForCausalLM", "CpmAntConfig", CPM),
    "Dbrx-untied": ("DbrxForCausalLM", "DbrxConfig", DBRX),
    **{
        f"{name}-{'tied' if tied else 'untied'}": (
            f"{name}ForCausalLM",
            f"{name}Config",
            {**settings, "tie_word_embeddings": tied},
        )
        for name, settings in (("Zamba", ZAMBA), ("Zamba2", ZAMBA2), ("Zaya", ZAYA))
        for tied in (True, False)
    },
    "Zamba2-biases": ("Zamba2ForCausalLM", "Zamba2Config", {**ZAMBA2, "add_bias_linear": True}),
    "Qwen3Next-biases": (
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {**SIZES, **DELTA, **MIXTURE, "attention_bias": True},
    ),
    "HrmText-untied": (
        "HrmTextForCausalLM",
        "HrmTextConfig",
        {**SIZES, "num_layers_per_stack": 1, "num_hidden_layers": 6, "H_cycles": 2, "L_cycles": 2},
    ),
    "RemBert-untied": (
        "RemBertForCausalLM",
        "RemBertConfig",
        {**HEADS_OF_WIDTH, "input_embedding_size": 16, "output_embedding_size": 24, "is_decoder": True},
    ),
}
