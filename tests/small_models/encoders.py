"""Tiny models of encoders, encoder-decoders, image classifiers and speech encoders."""

from __future__ import annotations

from typing import Any

ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 24,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}
T5 = {
    "d_model": 32,
    "num_layers": 2,
    "num_heads": 4,
    "d_kv": 6,
    "d_ff": 40,
    "vocab_size": 50,
    "decoder_start_token_id": 0,
}
CROSSED = {"is_decoder": True, "add_cross_attention": True}
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 32,
    "patch_size": 8,
}
GEMMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}
T5GEMMA = {"encoder": {**GEMMA, "hidden_size": 48}, "decoder": GEMMA, "vocab_size": 50}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 20,
    "conv_dim": [8, 8],
    "conv_kernel": [4, 3],
    "conv_stride": [2, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}

# Each case: class in transformers, config class, settings.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"{name}-tied": (f"{head}ForMaskedLM", f"{head}Config", {**ENCODER, **more})
        for name, head, more in (
            ("Ernie", "Ernie", {"use_task_id": True}),
            ("MegatronBert", "MegatronBert", {}),
            ("XLMRobertaXL", "XLMRobertaXL", {}),
            ("RobertaPreLayerNorm", "RobertaPreLayerNorm", {}),
            ("Data2VecText", "Data2VecText", {}),
            ("RoFormer", "RoFormer", {"embedding_size": 32}),
            ("BigBird", "BigBird", {"attention_type": "original_full"}),
            ("MPNet", "MPNet", {}),
            ("LayoutLM", "LayoutLM", {}),
            ("Longformer", "Longformer", {"attention_window": [4, 4]}),
        )
    },
    **{
        f"{name}-tied": (f"{name}ForConditionalGeneration", f"{name}Config", {**BART, **more})
        for name, more in (
            ("MBart", {"scale_embedding": True}),
            ("Pegasus", {}),
            ("Blenderbot", {}),
            ("BlenderbotSmall", {}),
            ("PLBart", {"scale_embedding": True}),
            ("M2M100", {}),
            ("BigBirdPegasus", {"attention_type": "original_full"}),
            ("Mvp", {}),
            (
                "LED",
                {
                    "attention_window": [4, 4],
                    "max_encoder_position_embeddings": 64,
                    "max_decoder_position_embeddings": 64,
                },
            ),
            ("PegasusX", {}),
        )
    },
    "Marian-tied": ("MarianMTModel", "MarianConfig", BART),
    "UMT5-gated": ("UMT5ForConditionalGeneration", "UMT5Config", T5),
    "LongT5-tied": ("LongT5ForConditionalGeneration", "LongT5Config", T5),
    "SwitchTransformers-tied": (
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        {**T5, "num_experts": 4},
    ),
    "Wav2Vec2-group": ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH),
    "Wav2Vec2-layer": (
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
    "Hubert-group": ("HubertForCTC", "HubertConfig", SPEECH),
    "UniSpeech-group": ("UniSpeechForCTC", "UniSpeechConfig", {**SPEECH, "num_ctc_classes": 20}),
    "UniSpeechSat-group": ("UniSpeechSatForCTC", "UniSpeechSatConfig", SPEECH),
    "Beit-classifier": ("BeitForImageClassification", "BeitConfig", {**VIT, "use_relative_position_bias": True}),
    "Data2VecVision-classifier": (
        "Data2VecVisionForImageClassification",
        "Data2VecVisionConfig",
        {**VIT, "use_relative_position_bias": True},
    ),
    "Dinov3ViT": ("DINOv3ViTModel", "DINOv3ViTConfig", {**VIT, "num_register_tokens": 2}),
    "Dinov2Registers": (
        "Dinov2WithRegistersForImageClassification",
        "Dinov2WithRegistersConfig",
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8},
    ),
    "IJepa": ("IJepaForImageClassification", "IJepaConfig", VIT),
    **{
        f"{name}-tied": (f"{name}ForMaskedLM", f"{name}Config", {**ENCODER, **more})
        for name, more in (
            ("Gte", {}),
            ("NomicBert", {}),
            ("JinaEmbeddingsV3", {}),
            ("EuroBert", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
            ("Albert", {"embedding_size": 16}),
            ("Deberta", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
            ("Esm", {"position_embedding_type": "rotary"}),
            ("Nystromformer", {"segment_means_seq_len": 64, "num_landmarks": 4}),
            ("Yoso", {}),
            ("Tapas", {}),
            ("Luke", {"entity_vocab_size": 20, "entity_emb_size": 16}),
            ("IBert", {}),
            ("ConvBert", {"embedding_size": 16, "conv_kernel_size": 3}),
            ("SqueezeBert", {"embedding_size": 32, "num_attention_heads": 8}),
        )
    },
    "Ultrabert-untied": ("UltrabertForMaskedLM", "UltrabertConfig", {**ENCODER, "prediction_head_size": 24}),
    "Ultrabert-tied": (
        "UltrabertForMaskedLM",
        "UltrabertConfig",
        {**ENCODER, "prediction_head_size": 24, "tie_word_embeddings": True},
    ),
    "Albert-pretraining": ("AlbertForPreTraining", "AlbertConfig", {**ENCODER, "embedding_size": 16}),
    "Esm-absolute": ("EsmForMaskedLM", "EsmConfig", {**ENCODER, "emb_layer_norm_before": True}),
    "Esmc-untied": ("EsmcForMaskedLM", "EsmcConfig", ENCODER),
    "FNet-pretraining": ("FNetForPreTraining", "FNetConfig", {**ENCODER, "type_vocab_size": 2}),
    "Flaubert-tied": (
        "FlaubertWithLMHeadModel",
        "FlaubertConfig",
        {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 50, "max_position_embeddings": 64},
    ),
    "Funnel-tied": (
        "FunnelForMaskedLM",
        "FunnelConfig",
        {"d_model": 32, "n_head": 4, "d_head": 6, "d_inner": 40, "block_sizes": [1, 1], "vocab_size": 50},
    ),
    "T5Gemma-tied": ("T5GemmaForConditionalGeneration", "T5GemmaConfig", T5GEMMA),
    "T5Gemma-untied": ("T5GemmaForConditionalGeneration", "T5GemmaConfig", {**T5GEMMA, "tie_word_embeddings": False}),
    "T5Gemma2-tied": (
        "T5Gemma2ForConditionalGeneration",
        "T5Gemma2Config",
        {
            "encoder": {
                "text_config": GEMMA,
                "vision_config": {**VIT, "num_hidden_layers": 1},
                "mm_tokens_per_image": 4,
                "image_token_index": 47,
                "boi_token_index": 48,
                "eoi_token_index": 49,
            },
            "decoder": GEMMA,
            "image_token_index": 47,
            "eoi_token_index": 49,
        },
    ),
    "FSMT-untied": (
        "FSMTForConditionalGeneration",
        "FSMTConfig",
        {**BART, "src_vocab_size": 50, "tgt_vocab_size": 50, "langs": ["en", "de"], "decoder_start_token_id": 2},
    ),
    "NllbMoe-tied": (
        "NllbMoeForConditionalGeneration",
        "NllbMoeConfig",
        {**BART, "num_experts": 4, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    ),
    "DebertaV2-projected": (
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "embedding_size": 16},
    ),
    "Deberta-stated": ("DebertaForMaskedLM", "DebertaConfig", {**ENCODER, "embedding_size": 32}),
    **{
        f"{name}-crossed": (f"{name}ForCausalLM", f"{name}Config", {**ENCODER, **CROSSED})
        for name in ("Roberta", "Electra")
    },
    "Bert-crossed": ("BertLMHeadModel", "BertConfig", {**ENCODER, **CROSSED}),
    "MobileBert": (
        "MobileBertForMaskedLM",
        "MobileBertConfig",
        {
            **ENCODER,
            "hidden_size": 24,
            "embedding_size": 16,
            "intra_bottleneck_size": 16,
            "num_feedforward_networks": 2,
        },
    ),
    "OpenAIPrivacyFilter": (
        "OpenAIPrivacyFilterForTokenClassification",
        "OpenAIPrivacyFilterConfig",
        {
            **GEMMA,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 6,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "Canine": (
        "CanineForSequenceClassification",
        "CanineConfig",
        {
            **{key: value for key, value in ENCODER.items() if key != "vocab_size"},  # it reads characters
            "num_hash_buckets": 16,
            "num_hash_functions": 4,
            "max_position_embeddings": 64,
            "local_transformer_stride": 8,
            "downsampling_rate": 2,
            "upsampling_kernel_size": 2,
        },
    ),
    "Splinter": ("SplinterForQuestionAnswering", "SplinterConfig", {**ENCODER, "question_token_id": 3}),
    **{
        f"DPR-{name}": (f"DPR{kind}", "DPRConfig", {**ENCODER, "projection_dim": size})
        for name, kind, size in (
            ("context", "ContextEncoder", 20),
            ("question", "QuestionEncoder", 0),
            ("reader", "Reader", 0),
        )
    },
    "BertGeneration": ("BertGenerationDecoder", "BertGenerationConfig", {**ENCODER, "is_decoder": True}),
}

# Cases that only the slow suite tries.
RARE = frozenset(
    {
        *("NomicBert-tied", "JinaEmbeddingsV3-tied", "EuroBert-tied", "Deberta-tied", "Esm-tied", "Ultrabert-tied"),
        *("Nystromformer-tied", "Yoso-tied", "Tapas-tied", "Luke-tied", "IBert-tied", "ConvBert-tied", "Flaubert-tied"),
        *("T5Gemma-tied", "T5Gemma-untied", "T5Gemma2-tied", "FSMT-untied", "NllbMoe-tied"),
        *("FNet-pretraining", "Funnel-tied"),
        *("DebertaV2-projected", "Deberta-stated", "Roberta-crossed", "Electra-crossed", "Bert-crossed"),
        *("OpenAIPrivacyFilter", "Canine", "Splinter", "DPR-context", "DPR-question", "DPR-reader"),
        *("Ultrabert-untied", "Albert-pretraining", "Esm-absolute", "Esmc-untied"),
    }
)
