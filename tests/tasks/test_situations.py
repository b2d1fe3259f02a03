"""Folders as people have them: files and tensors beside what `save_pretrained` writes today."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import helpers
from mupscale_cli import widen

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LLAMA = transformers.LlamaForCausalLM, transformers.LlamaConfig, {**SIZES, "tie_word_embeddings": False}
TIED = transformers.LlamaForCausalLM, transformers.LlamaConfig, {**SIZES, "tie_word_embeddings": True}
BERT = transformers.BertModel, transformers.BertConfig, {**SIZES, "max_position_embeddings": 32}
CLASSIFIER = transformers.BertForSequenceClassification, transformers.BertConfig, {**BERT[2], "num_labels": 1}
GPT2 = (
    transformers.GPT2LMHeadModel,
    transformers.GPT2Config,
    {
        "vocab_size": 40,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 32,
        "bos_token_id": 0,
    },
)
FREQUENCIES = {f"model.layers.{number}.self_attn.rotary_emb.inv_freq": torch.ones(4) for number in range(2)}
POSITIONS = {"embeddings.position_ids": torch.arange(32)[None]}
MASKS = {
    f"transformer.h.{number}.attn.{name}": torch.ones(shape)
    for number in range(2)
    for name, shape in (("bias", (1, 1, 32, 32)), ("masked_bias", ()))
}


class Situation(NamedTuple):
    """A model, how its tensors are stored, further keys of config.json, and files that are not carried."""

    model: tuple
    store: Callable = dict
    keys: Mapping = MappingProxyType({})
    left: tuple = ()


SITUATIONS = {
    "a tied readout stored as well": Situation(
        TIED, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    ),
    "a tied readout of GPT-2 stored as well": Situation(
        GPT2, lambda tensors: {**tensors, "lm_head.weight": tensors["transformer.wte.weight"].clone()}
    ),
    "a body without its prefix and a readout": Situation(
        LLAMA, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    ),
    "rotary frequencies of old checkpoints": Situation(LLAMA, lambda tensors: {**tensors, **FREQUENCIES}),
    "attention masks of old checkpoints": Situation(GPT2, lambda tensors: {**tensors, **MASKS}),
    "positions of old checkpoints": Situation(BERT, lambda tensors: {**tensors, **POSITIONS}),
    "a cross encoder": Situation(CLASSIFIER, keys={"sentence_transformers": {"version": "5.0"}}),
    "the layout of Mistral beside that of transformers": Situation(LLAMA, left=("consolidated.safetensors",)),
}


@pytest.mark.parametrize("case", SITUATIONS)
def test_a_folder_that_transformers_loads_is_widened(case, tmp_path):
    situation = SITUATIONS[case]
    model_class, config_class, sizes = situation.model
    narrow = tmp_path / "narrow"
    helpers.randomize(model_class(config_class(**sizes))).save_pretrained(narrow)
    tensors = situation.store(load_file(narrow / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, narrow / "model.safetensors")
    helpers.change_config(narrow, **situation.keys)
    for name in situation.left:
        save_file({"layers.0.attention.wq.weight": torch.ones(2, 2)}, narrow / name)
    result = widen(narrow, factor=2)
    assert result.verification.agrees
    assert not {file.name for file in result.output.iterdir()}.intersection(situation.left)
    assert model_class.from_pretrained(result.output).config.hidden_size == 32
