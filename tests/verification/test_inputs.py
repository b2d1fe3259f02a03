"""Random inputs for transformers models and user-defined ones."""

import sys

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from helpers import MLP_MODULE, MODELS, build, mlp_tensors
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.inputs.batch import Inputs
from mupscale_cli.verification.inputs.libraries import reference_inputs
from mupscale_cli.verification.inputs.user import user_inputs
from mupscale_cli.verification.result import CannotVerify, Comparison
from mupscale_cli.verification.user_models import load_user_module


class Stub(nn.Module):
    """The parts of a transformers model that are needed to make its inputs."""

    dtype = torch.float64

    def __init__(self, main_input_name, **config):
        super().__init__()
        self.main_input_name = main_input_name
        self.config = type("Config", (), {**config, "get_text_config": lambda self: self})()


def test_tokens_cover_the_vocabulary():
    inputs = reference_inputs(Stub("input_ids", vocab_size=5), torch.Generator().manual_seed(0))
    assert set(inputs.keywords["input_ids"].unique().tolist()) == {0, 1, 2, 3, 4}
    assert set(inputs.keywords) == {"input_ids"}


def test_encoder_decoders_get_tokens_for_both_parts():
    stub = Stub("input_ids", vocab_size=5, is_encoder_decoder=True)
    stub.forward = lambda input_ids, decoder_input_ids: (input_ids, decoder_input_ids)
    inputs = reference_inputs(stub, torch.Generator().manual_seed(0))
    assert set(inputs.keywords) == {"input_ids", "decoder_input_ids"}


def test_series_are_of_every_category():
    stub = Stub("past_values", context_length=4, freq_size=3)
    stub.forward = lambda past_values, freq: (past_values, freq)
    inputs = [reference_inputs(stub, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert {category for each in inputs for category in each.keywords["freq"]} == {0, 1, 2}


def test_series_that_are_predicted_come_with_all_that_is_known_of_their_times():
    sizes = {"context_length": 4, "prediction_length": 2, "lags_sequence": [1, 3], "input_size": 1}
    known = {"num_time_features": 2, "num_dynamic_real_features": 1, "num_static_real_features": 0}
    categories = {"num_static_categorical_features": 2, "cardinality": [5, 3]}
    stub = Stub("past_values", **sizes, **known, **categories)

    def forward(
        past_values,
        past_time_features,
        past_observed_mask,
        static_categorical_features,
        future_values,
        future_time_features,
    ):
        raise AssertionError

    stub.forward = forward
    made = reference_inputs(stub, torch.Generator().manual_seed(0)).keywords
    shapes = {name: tuple(value.shape[1:]) for name, value in made.items()}
    assert shapes == {
        "past_values": (7,),
        "past_time_features": (7, 3),
        "past_observed_mask": (7,),
        "static_categorical_features": (2,),
        "future_values": (2,),
        "future_time_features": (2, 3),
    }
    assert made["static_categorical_features"].max() < 5


@pytest.mark.parametrize(("size", "shape"), [(8, (1, 8, 8)), ((6, 10), (1, 6, 10))])
def test_images_have_the_size_in_the_config(size, shape):
    stub = Stub("pixel_values", image_size=size, num_channels=1)
    assert reference_inputs(stub, torch.Generator()).keywords["pixel_values"].shape[1:] == shape


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"conv_stride": [5, 2], "conv_kernel": [10, 3]}, (173,)),  # 16 frames and what the kernels read around them
        ({"num_mel_bins": 4, "max_length": 6}, (6, 4)),  # a spectrogram under the name of a waveform
    ],
)
def test_sounds_have_the_size_in_the_config(config, shape):
    inputs = reference_inputs(Stub("input_values", **config), torch.Generator())
    assert inputs.keywords["input_values"].shape[1:] == shape


def test_spectrograms_lie_as_the_first_layer_reads_them():
    stub = Stub("input_features", num_mel_bins=4)
    frames_first = reference_inputs(stub, torch.Generator()).keywords["input_features"]
    assert frames_first.shape == (2, 64, 4)
    stub.embed = nn.Linear(8, 6)  # two frames side by side
    assert reference_inputs(stub, torch.Generator()).keywords["input_features"].shape == (2, 64, 8)
    stub.embed = nn.Conv1d(4, 6, 3)
    assert reference_inputs(stub, torch.Generator()).keywords["input_features"].shape == (2, 4, 64)


@pytest.mark.parametrize("case", ["VoxtralRealtime-tied", "Kyutai", "VibeVoiceAsr", "MusicFlamingo", "Dia"])
def test_models_of_sound_get_all_that_they_read(case):
    model = build(case)
    inputs = reference_inputs(model, torch.Generator().manual_seed(0)).keywords
    tokens = inputs["input_ids"]
    if case == "Kyutai":  # codes beside each token
        assert tokens.shape == (2, 16, 1 + model.config.num_codebooks)
        assert 0 <= tokens[..., 1:].min() <= tokens[..., 1:].max() < model.config.codebook_vocab_size
    elif case == "Dia":
        assert inputs["decoder_input_ids"].shape == (2, 16, 3)
    elif case == "VoxtralRealtime-tied":  # one feature for each token
        assert tokens.shape[1] * model.config.audio_length_per_tok == inputs["input_features"].shape[2]
    else:
        assert (tokens == model.config.audio_token_id).any(dim=1).all()
    assert ("sample" in inputs) == (case == "VibeVoiceAsr")
    model(**inputs)


def test_a_head_that_passes_its_arguments_on_gets_sounds():
    _, config, settings = MODELS["Qwen3ASR-tied"]
    model = transformers.Qwen3ASRForTokenClassification(getattr(transformers, config)(**settings))
    inputs = reference_inputs(model, torch.Generator()).keywords
    assert {"input_ids", "input_features", "input_features_mask"} <= set(inputs)


@pytest.mark.parametrize("head", ["TextToSpeech", "SpeechToSpeech"])
def test_a_decoder_of_sound_gets_a_spectrogram_and_a_speaker(head):
    _, config, settings = MODELS["SpeechT5"]
    model = getattr(transformers, f"SpeechT5For{head}")(getattr(transformers, config)(**settings)).double()
    inputs = reference_inputs(model, torch.Generator()).keywords
    assert {"decoder_input_values", "speaker_embeddings"} <= set(inputs)
    assert model(**inputs).spectrogram.shape[-1] == model.config.num_mel_bins


def test_a_classifier_of_a_model_with_texts_reads_its_images_as_patches():
    """SigLIP 2's classifier has the config of both parts."""
    config = transformers.Siglip2Config(**MODELS["Siglip2-both"][2])
    inputs = reference_inputs(transformers.Siglip2ForImageClassification(config), torch.Generator())
    assert inputs.keywords["pixel_values"].shape[1] == config.vision_config.num_patches


def test_other_kinds_of_inputs_cannot_be_verified():
    with pytest.raises(CannotVerify, match=r"states.*model="):
        reference_inputs(Stub("states"), torch.Generator())


def test_only_floating_point_inputs_take_the_type_of_the_model():
    inputs = Inputs((torch.ones(1), torch.ones(1, dtype=torch.int64), "a"), {"x": torch.ones(1), "flag": True}, "")
    moved = inputs.to(torch.device("cpu"), torch.float64)
    assert [getattr(value, "dtype", value) for value in moved.arguments] == [torch.float64, torch.int64, "a"]
    assert moved.keywords["x"].dtype == torch.float64
    assert moved.keywords["flag"] is True


def test_a_user_defined_model_gets_numbers_or_tokens(mlp):
    plan, generator = plan_widening(mlp[0], factor=2), torch.Generator().manual_seed(0)
    (values,) = user_inputs(sys, {}, plan, generator).arguments
    assert values.shape[1:] == (5,)
    assert values.is_floating_point()
    (tokens,) = user_inputs(sys, {"vocab_size": 3}, plan, generator).arguments
    assert set(tokens.unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("returned", "arguments", "keywords"),
    [("1", (1,), {}), ("(1, 2)", (1, 2), {}), ("{'x': 1}", (), {"x": 1})],
)
def test_inputs_of_the_users_module_are_passed_unchanged(returned, arguments, keywords, mlp, tmp_path):
    (tmp_path / "own.py").write_text(f"{MLP_MODULE}\ndef inputs(config, generator):\n    return {returned}\n")
    module, _ = load_user_module(f"{tmp_path / 'own.py'}:build")
    found = user_inputs(module, {}, plan_widening(mlp[0], factor=2), torch.Generator())
    assert (found.arguments, dict(found.keywords)) == (arguments, keywords)


def test_inputs_of_the_users_module_reach_both_models(tmp_path):
    (tmp_path / "own.py").write_text(
        f"{MLP_MODULE}\nimport torch\ndef inputs(config, generator):\n"
        "    assert 'shapes' in config\n"
        "    return torch.zeros(3, 5, dtype=torch.float64)\n"
    )
    tensors = {**mlp_tensors(), "4.bias": torch.zeros(3), "2.bias": torch.zeros(6), "0.bias": torch.zeros(8)}
    save_file(tensors, tmp_path / "zero.safetensors")
    model = f"{tmp_path / 'own.py'}:build"
    wide = tmp_path / "wide.safetensors"
    found = widen(tmp_path / "zero.safetensors", wide, 2, dtype="float64", model=model).verification
    assert found.inputs == "inputs of the user's module"
    assert found.comparisons[0] == Comparison("logits (all zero, so nothing is compared)", 0.0, 0.0)
