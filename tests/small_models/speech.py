"""Tiny models of speech: encoders over waveforms and spectrograms, transducers and models that write text."""

from __future__ import annotations

from typing import Any

from small_models.encoders import BART, SPEECH

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
    "Moonshine-tied": ("MoonshineForConditionalGeneration", "MoonshineConfig", MOONSHINE),
    "Moonshine-untied": (
        "MoonshineForConditionalGeneration",
        "MoonshineConfig",
        {**MOONSHINE, "tie_word_embeddings": False, "attention_bias": True},
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
