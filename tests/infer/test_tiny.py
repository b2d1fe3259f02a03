"""Tiny models and their configs."""

import functools

import pytest
import torch

from mupscale_cli.infer import tiny
from mupscale_cli.infer.errors import TinyError, first_line
from mupscale_cli.infer.tiny import task_of, tiny_model
from mupscale_cli.infer.tiny_configs import tiny_configs, tiny_sizes
from mupscale_cli.verification.inputs.libraries import reference_inputs


def test_tiny_sizes_follow_the_names_of_keys():
    sizes = tiny_sizes(
        {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "intermediate_size": 11008,
            "dropout": 0.1,
            "moe_intermediate_size": 100,
            "use_cache": True,
            "eos_token_id": 77,
        }
    )
    assert "dropout" not in sizes
    assert "use_cache" not in sizes
    assert sizes["intermediate_size"] != sizes["moe_intermediate_size"]
    assert all(size <= 64 for size in sizes.values())


@pytest.mark.parametrize(
    ("lists", "tiny_lists"),
    [
        (([0, 1, 3, 4], [2, 5]), ([0, 2], [1, 3])),
        (([], [2, 5]), ([], [1, 3])),  # blocks 0, 1, 3 and 4 are in no list
        (([0], [0]), ([0, 2], [0, 2])),
        (([], [7]), ([], [])),  # there is no such block
    ],
)
def test_tiny_config_names_blocks_of_every_kind(lists, tiny_lists):
    keys = ("window_block_indices", "residual_block_indices")
    flags = {"num_hidden_layers": 6, **dict(zip(keys, lists, strict=True))}
    first = next(tiny_configs("vitdet", flags))
    assert first["num_hidden_layers"] == 4
    assert tuple(first[key] for key in keys) == tiny_lists


def test_tiny_model_keeps_the_flags_of_a_config():
    config = {"model_type": "llama", "hidden_size": 4096, "attention_bias": True, "num_hidden_layers": 32}
    model = tiny_model("llama", flags=config).model
    assert "model.layers.0.self_attn.q_proj.bias" in model.state_dict()
    assert model.config.hidden_size < 100


def test_tiny_model_keeps_small_numbers_that_are_no_sizes():
    config = {"model_type": "vit", "hidden_size": 4096, "patch_size": 8, "num_channels": 1, "num_hidden_layers": 2}
    model = tiny_model("vit", "base", flags=config).model
    assert (model.config.patch_size, model.config.num_channels) == (8, 1)
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (48, 4)


def test_lists_keep_the_number_of_items_that_a_flag_says():
    flags = {"num_static_categorical_features": 2, "cardinality": [366, 5], "embedding_dimension": [50, 2]}
    flags |= {"prediction_length": 24, "lags_sequence": [1, 2, 3, 48], "num_time_features": 1}
    model = tiny_model("time_series_transformer", "TimeSeriesTransformerForPrediction", flags=flags).model
    tables = [model.state_dict()[f"model.embedder.embedders.{number}.weight"] for number in range(2)]
    assert [tuple(table.shape) for table in tables] == [(16, 16), (5, 2)]


def test_a_table_without_rows_has_no_random_values():
    table = torch.nn.Embedding(0, 3)
    assert tiny.randomize(table) is table


def test_tiny_model_refuses_an_unknown_type():
    with pytest.raises(TinyError, match="no model type `nothing`"):
        tiny_model("nothing")


def test_the_parts_of_a_tiny_model_are_tiny_too():
    model = tiny_model("chinese_clip", "base").model
    assert model.config.text_config.hidden_size == model.config.vision_config.hidden_size == 48
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_the_parts_of_a_tiny_model_keep_the_flags_of_a_config():
    flags = {"text_config": {"model_type": "qwen2", "hidden_act": "relu"}, "projector_hidden_act": "silu"}
    config = next(tiny_configs("llava", flags))
    assert (config["text_config"]["model_type"], config["text_config"]["hidden_act"]) == ("qwen2", "relu")
    assert config["projector_hidden_act"] == "silu"
    assert config["vision_config"]["hidden_size"] < 100


@pytest.mark.parametrize(
    ("model_type", "agreeing"),
    [
        ("sam", (("vision_config", "output_channels"), ("mask_decoder_config", "hidden_size"))),
        ("rt_detr", (("encoder_hidden_dim",), ("decoder_in_channels", 0))),
    ],
)
def test_parts_that_agree_on_a_width_stay_in_proportion(model_type, agreeing):
    tiny_one = tiny_model(model_type, task_of(model_type))
    first, second = (functools.reduce(lambda value, key: value[key], path, tiny_one.config) for path in agreeing)
    assert first == second < 100
    assert sum(each.numel() for each in tiny_one.model.parameters()) < 5e6


def test_tiny_model_names_the_parts_that_stay_large(monkeypatch):
    monkeypatch.setattr(tiny, "_MAX_PARAMETERS", 1000)
    with pytest.raises(TinyError, match=r"in its parts `text_config` \(chinese_clip_text_model\), `vision_config`"):
        tiny_model("chinese_clip", "base")


def test_the_sections_of_rotary_frequencies_fit_the_heads():
    config = tiny_model("qwen2_5_vl_text", "base").config
    assert 2 * sum(config["rope_parameters"]["mrope_section"]) in (8, 12)


@pytest.mark.parametrize("model_type", ["upernet", "prompt_depth_anything"])
def test_a_tiny_backbone_returns_as_many_layers_as_its_neck_reads(model_type):
    assert len(tiny_model(model_type, task_of(model_type)).model.config.backbone_config.out_indices) == 4


@pytest.mark.parametrize(
    ("model_type", "names"),
    [
        ("vilt", {"input_ids", "pixel_values"}),
        ("gemma4_vision", {"pixel_values", "pixel_position_ids"}),
        ("granite_docling_vision", {"pixel_values"}),
        ("cosmos3_edge_vision", {"pixel_values", "grid_thw"}),
        ("exaone4_5_vision", {"hidden_states", "grid_thw"}),
        ("videoprism_vision_model", {"pixel_values_videos"}),
        ("patchtst", {"past_values"}),
        ("dac", {"input_values"}),
    ],
)
def test_a_tiny_tower_gets_what_its_class_reads(model_type, names):
    """Their classes name another argument as the main input, or none."""
    model = tiny_model(model_type, "base").model
    assert reference_inputs(model, torch.Generator()).keywords.keys() == names


def test_a_type_for_another_task_has_the_class_for_that():
    assert task_of("superpoint") == "SuperPointForKeypointDetection"


def test_tiny_model_refuses_a_model_that_stays_large(monkeypatch):
    """Building it would exhaust memory."""
    monkeypatch.setattr(tiny, "_MAX_PARAMETERS", 1000)
    with pytest.raises(TinyError, match=r"cannot build a tiny `llama`: .* it still has 0 M parameters"):
        tiny_model("llama")


@pytest.mark.parametrize(
    ("model_type", "named", "head"),
    [
        ("llama", "LlamaForCausalLM", "causal-lm"),
        ("llama", "LlamaForSequenceClassification", "LlamaForSequenceClassification"),
        ("yolos", "YolosForObjectDetection", "YolosForObjectDetection"),
        ("llama", "BertForMaskedLM", "causal-lm"),  # of another type
        ("llama", "MyModel", "causal-lm"),
    ],
)
def test_the_class_that_a_config_names_is_the_one_to_draft_for(model_type, named, head):
    assert task_of(model_type, [named]) == head


def test_a_classifier_without_a_task_of_its_own_is_built_with_its_head():
    model = tiny_model("llama", task_of("llama", ["LlamaForSequenceClassification"])).model
    assert "score.weight" in model.state_dict()


def test_the_first_line_of_an_error_says_something():
    assert first_line(ValueError("Class validation error:\n    the sizes differ\nmore")) == (
        "Class validation error: the sizes differ"
    )
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError()"
