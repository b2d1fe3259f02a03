"""Tiny models of speech: encoders over waveforms and spectrograms, transducers and models that write text."""

from __future__ import annotations

from typing import Any

from small_models.encoders import BART, CROSSED, ENCODER, SPEECH, T5

LAYER = {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CONFORMER = {**SPEECH, "conv_depthwise_kernel_size": 5}
SPECTROGRAM = {key: value for key, value in CONFORMER.items() if key not in ("conv_dim", "conv_kernel", "conv_stride")}
W2V_BERT = {**SPECTROGRAM, "feature_projection_input_dim": 12, "adapter_kernel_size": 3, "adapter_stride": 2}
PARAKEET = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "subsampling_conv_channels": 8,
    "num_mel_bins": 16,
    "subsampling_factor": 4,
    "conv_kernel_size": 5,
}
TRANSDUCER = {"vocab_size": 20, "pad_token_id": 0, "decoder_hidden_size": 24, "encoder_config": PARAKEET}

TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "pad_token_id": 0,
}
AUDIO = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "num_mel_bins": 10,
    "max_source_positions": 16,
}
WHISPER = {
    "d_model": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 36,
    "num_mel_bins": 10,
    "max_source_positions": 16,
}
GRANITE_CONFORMER = {
    "input_dim": 20,
    "num_layers": 2,
    "hidden_dim": 24,
    "feedforward_mult": 2,
    "num_heads": 4,
    "dim_head": 4,
    "output_dim": 10,
    "context_size": 16,
    "max_pos_emb": 16,
    "conv_kernel_size": 5,
}
GRANITE_QFORMER = {
    "model_type": "blip_2_qformer",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "cross_attention_frequency": 1,
}

CHUNKED = {
    **WHISPER,
    "downsample_hidden_size": 6,
    "n_window": 50,  # the class counts features as for this length
    "n_window_infer": 100,
    "max_position_embeddings": 13,
    "output_dim": 48,
}
GRANITE5 = {
    "vocab_size": 20,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_mel_bins": 5,
    "max_position_embeddings": 16,
    "context_size": 16,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    **SPECIAL,
}
# The encoder's frequencies are float32 numbers, and the same for both widths only if these are powers of two.
COHERE_ASR = {**DECODER, "hidden_size": 48, "decoder_start_token_id": 0, "encoder_config": PARAKEET}
OMNIASR = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "conv_dim": [12, 12],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
STREAMING_ENCODER = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "sliding_windows": [[16, 4], [16, 0]],
}
STREAMING_DECODER = {
    "vocab_size": 50,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 0,
    **SPECIAL,
}
MIMI = {
    "num_filters": 2,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "codebook_size": 16,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 3,
    "num_semantic_quantizers": 1,
    "upsample_groups": 16,
}
TOKENIZER = {"num_filters": 4, "downsampling_ratios": [2, 4], "depths": [1, 1, 1]}
DIA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 40,
    "vocab_size": 50,
}
SEAMLESS = {
    "vocab_size": 50,
    "t2u_vocab_size": 30,
    "hidden_size": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 36,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 4,
    "speech_encoder_intermediate_size": 24,
    "feature_projection_input_dim": 12,
    "max_position_embeddings": 64,
    "t2u_encoder_layers": 1,
    "t2u_decoder_layers": 1,
    "t2u_encoder_ffn_dim": 24,
    "t2u_decoder_ffn_dim": 24,
    "t2u_encoder_attention_heads": 4,
    "t2u_decoder_attention_heads": 4,
    "decoder_start_token_id": 0,
    **SPECIAL,
}

MOONSHINE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 2,
    "encoder_num_attention_heads": 2,
    "decoder_num_attention_heads": 4,
}

# Each case: class in transformers, config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Wav2Vec2-adapter": (
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {**SPEECH, "add_adapter": True, "num_adapter_layers": 1},
    ),
    "Wav2Vec2-pretraining": (
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2Config",
        {**SPEECH, "codevector_dim": 8, "num_codevectors_per_group": 4, "proj_codevector_dim": 8},
    ),
    "Data2VecAudio": ("Data2VecAudioForCTC", "Data2VecAudioConfig", {**SPEECH, "conv_pos_kernel_size": 3}),
    "SEW": ("SEWForCTC", "SEWConfig", SPEECH),
    "WavLM-group": ("WavLMForCTC", "WavLMConfig", SPEECH),
    "WavLM-layer": ("WavLMForCTC", "WavLMConfig", LAYER),
    "WavLM-speakers": (
        "WavLMForXVector",
        "WavLMConfig",
        {
            **SPEECH,
            "tdnn_dim": [8, 8, 8],
            "tdnn_kernel": [3, 3, 1],
            "tdnn_dilation": [1, 1, 1],
            "xvector_output_dim": 8,
        },
    ),
    **{
        f"Wav2Vec2Conformer-{name}": (
            "Wav2Vec2ConformerForCTC",
            "Wav2Vec2ConformerConfig",
            {**CONFORMER, "position_embeddings_type": kind},
        )
        for name, kind in (("sinusoids", "relative"), ("rotary", "rotary"))
    },
    **{
        f"Wav2Vec2Bert-{name}": (
            "Wav2Vec2BertForCTC",
            "Wav2Vec2BertConfig",
            {**W2V_BERT, "position_embeddings_type": kind, "add_adapter": kind == "relative_key"},
        )
        for name, kind in (("sinusoids", "relative"), ("keys", "relative_key"), ("rotary", "rotary"))
    },
    "ParakeetEncoder": ("ParakeetEncoder", "ParakeetEncoderConfig", PARAKEET),
    "ParakeetCTC": (
        "ParakeetForCTC",
        "ParakeetCTCConfig",
        {"vocab_size": 20, "pad_token_id": 0, "encoder_config": {**PARAKEET, "scale_input": False}},
    ),
    "ParakeetTDT": ("ParakeetForTDT", "ParakeetTDTConfig", TRANSDUCER),
    "Voxtral": (
        "VoxtralForConditionalGeneration",
        "VoxtralConfig",
        {"text_config": {**TEXT, "model_type": "llama"}, "audio_config": AUDIO, "audio_token_id": 49},
    ),
    "Qwen2Audio": (
        "Qwen2AudioForConditionalGeneration",
        "Qwen2AudioConfig",
        {"text_config": {**TEXT, "model_type": "qwen2"}, "audio_config": WHISPER, "audio_token_index": 49},
    ),
    "Qwen2AudioEncoder": ("Qwen2AudioEncoder", "Qwen2AudioEncoderConfig", WHISPER),
    "AudioFlamingo3": (
        "AudioFlamingo3ForConditionalGeneration",
        "AudioFlamingo3Config",
        {"text_config": {**TEXT, "model_type": "qwen2"}, "audio_config": AUDIO, "audio_token_id": 49},
    ),
    **{
        f"MossTranscribeDiarize-{'tied' if tied else 'untied'}": (
            "MossTranscribeDiarizeForConditionalGeneration",
            "MossTranscribeDiarizeConfig",
            {
                "text_config": {**TEXT, "model_type": "qwen3"},
                "audio_config": AUDIO,
                "audio_token_id": 49,
                "tie_word_embeddings": tied,
            },
        )
        for tied in (True, False)
    },
    "GlmAsr": (
        "GlmAsrForConditionalGeneration",
        "GlmAsrConfig",
        {"text_config": {**TEXT, "model_type": "llama"}, "audio_config": AUDIO, "audio_token_id": 49},
    ),
    "MusicFlamingo": (
        "MusicFlamingoForConditionalGeneration",
        "MusicFlamingoConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "audio_config": {**AUDIO, "model_type": "audioflamingo3_encoder"},
            "audio_token_id": 49,
            "rope_parameters": {"rope_type": "default", "rope_theta": 32.0, "partial_rotary_factor": 0.5},
        },
    ),
    **{
        f"Qwen3ASR-{'tied' if tied else 'untied'}": (
            "Qwen3ASRForConditionalGeneration",
            "Qwen3ASRConfig",
            {
                "text_config": {**TEXT, "model_type": "qwen3"},
                "audio_config": CHUNKED,
                "audio_token_id": 49,
                "tie_word_embeddings": tied,
            },
        )
        for tied in (True, False)
    },
    **{
        f"VoxtralRealtime-{'tied' if tied else 'untied'}": (
            "VoxtralRealtimeForConditionalGeneration",
            "VoxtralRealtimeConfig",
            {
                "text_config": {**TEXT, "model_type": "voxtral_realtime_text", "head_dim": 8},
                "audio_config": {**AUDIO, "head_dim": 8},
                "tie_word_embeddings": tied,
            },
        )
        for tied in (True, False)
    },
    **{
        f"GraniteSpeech-{'tied' if tied else 'untied'}": (
            "GraniteSpeechForConditionalGeneration",
            "GraniteSpeechConfig",
            {
                "text_config": {**TEXT, "model_type": "granite"},
                "encoder_config": GRANITE_CONFORMER,
                "projector_config": {**GRANITE_QFORMER, "encoder_hidden_size": 24},
                "audio_token_index": 49,
                "has_lora_adapter": False,
                "tie_word_embeddings": tied,
            },
        )
        for tied in (True, False)
    },
    "GraniteSpeechPlus": (
        "GraniteSpeechPlusForConditionalGeneration",
        "GraniteSpeechPlusConfig",
        {
            "text_config": {**TEXT, "model_type": "granite"},
            "encoder_config": {**GRANITE_CONFORMER, "cat_hidden_layers": [1]},
            "projector_config": {**GRANITE_QFORMER, "encoder_hidden_size": 48},
            "audio_token_index": 49,
            "has_lora_adapter": False,
        },
    ),
    "GraniteSpeech5": (
        "GraniteSpeech5ForCTC",
        "GraniteSpeech5CTCConfig",
        {"vocab_size": 20, "encoder_config": GRANITE5},
    ),
    "CohereAsr-untied": ("CohereAsrForConditionalGeneration", "CohereAsrConfig", COHERE_ASR),
    "CohereAsr-tied": (
        "CohereAsrForConditionalGeneration",
        "CohereAsrConfig",
        {**COHERE_ASR, "tie_word_embeddings": True},
    ),
    "Canary": (
        "CanaryForConditionalGeneration",
        "CanaryConfig",
        {
            "vocab_size": 50,
            "encoder_config": PARAKEET,
            "decoder_config": {**DECODER, "head_dim": 6},
            "decoder_start_token_id": 0,
            **SPECIAL,
        },
    ),
    "OmniASR": (
        "OmniASRForConditionalGeneration",
        "OmniASRConfig",
        {"text_config": {**TEXT, "model_type": "llama"}, "audio_config": OMNIASR, "audio_token_id": 49},
    ),
    "OmniASRCTC": ("OmniASRForCTC", "OmniASRCTCConfig", {"vocab_size": 20, "pad_token_id": 0, "audio_config": OMNIASR}),
    "FunAsrNano": (
        "FunAsrNanoForConditionalGeneration",
        "FunAsrNanoConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen3", "head_dim": 8},
            "audio_config": {
                "num_mel_bins": 4,
                "num_stacked_frames": 5,
                "hidden_size": 24,
                "num_attention_heads": 4,
                "intermediate_size": 36,
                "num_hidden_layers": 3,
                "num_timestamp_prediction_layers": 1,
                "max_position_embeddings": 80,
            },
            "adaptor_config": {
                "hidden_size": 48,
                "num_attention_heads": 4,
                "intermediate_size": 12,
                "num_hidden_layers": 2,
                "projector_hidden_size": 20,
            },
            "audio_token_id": 49,
        },
    ),
    "Moonshine-tied": ("MoonshineForConditionalGeneration", "MoonshineConfig", MOONSHINE),
    "Moonshine-untied": (
        "MoonshineForConditionalGeneration",
        "MoonshineConfig",
        {**MOONSHINE, "tie_word_embeddings": False, "attention_bias": True},
    ),
    **{
        f"MoonshineStreaming-{'tied' if tied else 'untied'}": (
            "MoonshineStreamingForConditionalGeneration",
            "MoonshineStreamingConfig",
            {
                **STREAMING_DECODER,
                "hidden_size": 32 if tied else 24,
                "encoder_config": STREAMING_ENCODER,
                "tie_word_embeddings": tied,
                "attention_bias": not tied,
            },
        )
        for tied in (True, False)
    },
    "Kyutai": (
        "KyutaiSpeechToTextForConditionalGeneration",
        "KyutaiSpeechToTextConfig",
        {
            "vocab_size": 50,
            "codebook_vocab_size": 17,
            "num_codebooks": 3,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "ffn_dim": 48,
            "audio_bos_token_id": 16,
            "audio_pad_token_id": 101,
            "codec_config": MIMI,
            **SPECIAL,
        },
    ),
    "VibeVoiceAsr": (
        "VibeVoiceAsrForConditionalGeneration",
        "VibeVoiceAsrConfig",
        {
            "text_config": {**TEXT, "model_type": "qwen2"},
            "acoustic_tokenizer_encoder_config": {**TOKENIZER, "hidden_size": 6},
            "semantic_tokenizer_encoder_config": {**TOKENIZER, "hidden_size": 10},
            "acoustic_tokenizer_chunk_size": 4000,
            "audio_token_id": 49,
        },
    ),
    "SpeechT5": (
        "SpeechT5ForSpeechToText",
        "SpeechT5Config",
        {
            **SPEECH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 40,
            "decoder_ffn_dim": 36,
            "encoder_max_relative_position": 8,
            "vocab_size": 50,
            "decoder_start_token_id": 0,
            **SPECIAL,
        },
    ),
    **{
        f"SeamlessM4T{version}": (
            f"SeamlessM4T{version}ForSpeechToText",
            f"SeamlessM4T{version}Config",
            SEAMLESS,
        )
        for version in ("", "v2")
    },
    "Pop2Piano": (
        "Pop2PianoForConditionalGeneration",
        "Pop2PianoConfig",
        {**T5, "composer_vocab_size": 21, "pad_token_id": 0},
    ),
    "Dia": (
        "DiaForConditionalGeneration",
        "DiaConfig",
        {
            "encoder_config": {**DIA, "num_key_value_heads": 4},
            "decoder_config": {
                **DIA,
                "hidden_size": 48,
                "num_channels": 3,
                "cross_num_attention_heads": 2,
                "cross_num_key_value_heads": 2,
                "cross_head_dim": 12,
                "cross_hidden_size": 32,
            },
            "delay_pattern": [0, 1, 2],
            "decoder_start_token_id": 0,
            **SPECIAL,
        },
    ),
    "NemotronAsrStreaming": (
        "NemotronAsrStreamingForRNNT",
        "NemotronAsrStreamingConfig",
        {**TRANSDUCER, "encoder_config": {**PARAKEET, "sliding_window": 8}},
    ),
    "Nemotron3_5Asr": (
        "Nemotron3_5AsrForRNNT",
        "Nemotron3_5AsrConfig",
        {
            **TRANSDUCER,
            "encoder_config": {**PARAKEET, "sliding_window": 8},
            "num_prompts": 6,
            "default_prompt_id": 2,
            "prompt_intermediate_size": 20,
        },
    ),
    "EncoderDecoder": (
        "EncoderDecoderModel",
        "EncoderDecoderConfig",
        {
            "encoder": {**ENCODER, "model_type": "bert"},
            "decoder": {**ENCODER, **CROSSED, "model_type": "bert"},
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
        },
    ),
    "EncoderDecoder-projected": (
        "EncoderDecoderModel",
        "EncoderDecoderConfig",
        {
            "encoder": {**ENCODER, "hidden_size": 48, "model_type": "roberta"},
            "decoder": {**ENCODER, **CROSSED, "model_type": "roberta"},
            "decoder_start_token_id": 0,
            "pad_token_id": 0,
        },
    ),
    **{
        f"SpeechEncoderDecoder-{name}": (
            "SpeechEncoderDecoderModel",
            "SpeechEncoderDecoderConfig",
            {
                "encoder": {**SPEECH, "hidden_size": width, "model_type": "wav2vec2"},
                "decoder": {**BART, **CROSSED, "model_type": "mbart", "is_encoder_decoder": False},
                "decoder_start_token_id": 0,
                "pad_token_id": 0,
            },
        )
        for name, width in (("plain", 32), ("projected", 48))
    },
    "SEWD": (
        "SEWDForCTC",
        "SEWDConfig",
        {**SPEECH, "max_position_embeddings": 32, "position_buckets": 8, "squeeze_factor": 2},
    ),
    "LasrEncoder": ("LasrEncoder", "LasrEncoderConfig", PARAKEET),
    "LasrCTC": ("LasrForCTC", "LasrCTCConfig", {"vocab_size": 20, "pad_token_id": 0, "encoder_config": PARAKEET}),
    "Speech2Text": (
        "Speech2TextForConditionalGeneration",
        "Speech2TextConfig",
        {
            **BART,
            "max_source_positions": 64,
            "max_target_positions": 64,
            "conv_channels": 12,
            "input_feat_per_channel": 8,
            "input_channels": 1,
        },
    ),
    "Whisper-classifier": (
        "WhisperForAudioClassification",
        "WhisperConfig",
        {**WHISPER, "classifier_proj_size": 12, "use_weighted_layer_sum": True, "num_hidden_layers": 2},
    ),
    "Wav2Vec2-adapted": (
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        {**SPEECH, "add_adapter": True, "num_adapter_layers": 1, "output_hidden_size": 20},
    ),
    "ParakeetRNNT": ("ParakeetForRNNT", "ParakeetRNNTConfig", TRANSDUCER),
}
# Cases that the default run leaves out, since another case has the same shape.
RARE = frozenset(MODELS) - {"WavLM-group", "Wav2Vec2Bert-sinusoids", "ParakeetTDT", "Voxtral", "Moonshine-tied"}
