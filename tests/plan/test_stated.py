"""The plan refuses a config that the tensors contradict, and names the keys with both numbers."""

import pytest

from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import ConfigError, MupscaleError
from mupscale_cli.plan import Request, make_plan
from mupscale_cli.tasks.planning import choose_recipe


def plan(checkpoint, **changes):
    config = {**checkpoint.config, **changes}
    return make_plan(choose_recipe(checkpoint), checkpoint.specs, config, Request(factor=2))


# Transformers refuses each of these as well.
CONTRADICTIONS = [
    (
        "Llama-untied",
        {"vocab_size": 48},
        "`vocab_size` to 48, but dimension 0 of `lm_head.weight` (50 x 48) has size 50",
    ),
    ("Llama-untied", {"num_hidden_layers": 3}, "`num_hidden_layers` to 3, but the checkpoint has 2 blocks"),
    (
        "Llama-untied",
        {"num_key_value_heads": 3},
        "`num_attention_heads` to 4, which is not a multiple of `num_key_value_heads` 3",
    ),
    ("Llama-untied", {"head_dim": 16}, "`head_dim` to 16"),
    ("Llama-untied", {"hidden_size": 64}, "`hidden_size` to 64"),
    ("GPT2-tied", {"n_positions": 100}, "`n_positions` to 100"),
    ("OPT-tied", {"max_position_embeddings": 100}, "`max_position_embeddings` to 100"),
    ("Bert-pooler", {"type_vocab_size": 3}, "`type_vocab_size` to 3, but dimension 0"),
    ("Bert-pooler", {"id2label": {"0": "a", "1": "b", "2": "c"}}, "`num_labels` to 3, but dimension 0"),
    ("Mixtral-untied", {"num_local_experts": 8}, "num_local_experts"),
    ("ViT-classifier", {"image_size": 64}, "`image_size` to 64"),
    ("ViT-classifier", {"num_channels": 1}, "`num_channels` to 1"),
]


@pytest.mark.parametrize(("case", "changes", "expected"), CONTRADICTIONS)
def test_a_config_that_contradicts_the_tensors_is_refused(saved, case, changes, expected):
    with pytest.raises(MupscaleError) as refusal:
        plan(open_checkpoint(saved(case)), **changes)
    assert expected in str(refusal.value)


def test_every_contradiction_is_listed(saved):
    with pytest.raises(ConfigError) as refusal:
        plan(open_checkpoint(saved("GPT2-tied")), vocab_size=7, n_positions=8, n_layer=9)
    assert all(
        f"`{key}` to {size}" in str(refusal.value)
        for key, size in {"vocab_size": 7, "n_positions": 8, "n_layer": 9}.items()
    )


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("Llama-untied", {"vocab_size": None}),  # the config may leave out what the tensors show
        ("Llama-untied", {"num_hidden_layers": 1}),  # models ignore the other block
        ("Bert-pooler", {"id2label": None}),
        ("ViT-classifier", {"image_size": [16, 16]}),
        ("ViT-classifier", {"patch_size": None}),
    ],
)
def test_a_config_that_says_less_than_the_tensors_is_accepted(saved, case, changes):
    assert plan(open_checkpoint(saved(case)), **changes).factors


def test_composite_models_name_the_section(saved):
    checkpoint = open_checkpoint(saved("Llava-clip"))
    text = {**checkpoint.config["text_config"], "vocab_size": 7}
    with pytest.raises(ConfigError, match=r"`text_config.vocab_size` to 7"):
        plan(checkpoint, text_config=text)
