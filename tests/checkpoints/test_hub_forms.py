"""Checkpoints as they are on the Hub, which differ from what current classes write."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers import randomize
from mupscale_cli.tasks.widen import widen
from small_models.established import ENCODER, GPT2, NO_HEAD_DIM, T5


def rewritten(source, folder, change, config=None):
    """Copy a checkpoint and change its tensors with a function."""
    shutil.copytree(source, folder)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    if config:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


def check(source, tmp_path, factor=3, axes=None):
    result = widen(source, tmp_path / "wide", factor, axes, dtype="float64")
    assert result.verification.agrees, result.verification
    assert result.verification.max_rel < 1e-12
    return load_file(tmp_path / "wide" / "model.safetensors")


def without(prefix):
    return lambda tensors: {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def test_gpt2_without_prefix_but_with_masks(saved, tmp_path):
    def change(tensors):
        mask = {f"h.{i}.attn.bias": torch.ones(1, 1, 64, 64).tril() for i in range(2)}
        return {**without("transformer.")(tensors), **mask}

    wide = check(rewritten(saved("GPT2-tied"), tmp_path / "narrow", change), tmp_path)
    assert "wte.weight" in wide
    assert "h.0.attn.bias" not in wide


def test_bloom_without_prefix(saved, tmp_path):
    check(rewritten(saved("Bloom-tied"), tmp_path / "narrow", without("transformer.")), tmp_path)


def test_llama_with_rotary_buffers_and_a_second_copy_of_the_embedding(saved, tmp_path):
    def change(tensors):
        buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
        return {**tensors, **buffers, "lm_head.weight": tensors["model.embed_tokens.weight"]}

    wide = check(rewritten(saved("Llama-tied"), tmp_path / "narrow", change), tmp_path)
    assert torch.equal(wide["lm_head.weight"], wide["model.embed_tokens.weight"])


def test_gpt_neox_with_masks(saved, tmp_path):
    def change(tensors):
        for i in range(2):
            layer = f"gpt_neox.layers.{i}.attention."
            tensors |= {
                f"{layer}bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
                f"{layer}masked_bias": torch.tensor(-1e9),
                f"{layer}rotary_emb.inv_freq": torch.ones(2),
            }
        return tensors

    wide = check(rewritten(saved("GPTNeoX-untied"), tmp_path / "narrow", change), tmp_path)
    assert not [name for name in wide if "masked_bias" in name]


def test_bert_with_gamma_beta_and_pretraining_heads(saved, tmp_path):
    def change(tensors):
        tensors = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        return {
            **tensors,
            "bert.embeddings.position_ids": torch.arange(512)[None],
            "bert.pooler.dense.weight": torch.randn(48, 48),
            "bert.pooler.dense.bias": torch.randn(48),
            "cls.seq_relationship.weight": torch.randn(2, 48),
            "cls.seq_relationship.bias": torch.randn(2),
            "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
            "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        }

    wide = check(rewritten(saved("Bert-tied"), tmp_path / "narrow", change), tmp_path)
    assert wide["bert.embeddings.LayerNorm.gamma"].shape == (144,)
    assert "bert.embeddings.position_ids" not in wide


def test_t5_with_copies_of_the_embedding(saved, tmp_path):
    def change(tensors):
        copies = dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), tensors["shared.weight"])
        return {**tensors, **copies}

    check(rewritten(saved("T5-tied"), tmp_path / "narrow", change), tmp_path)


@pytest.mark.parametrize(
    ("text", "vision", "rest"),
    [
        ("language_model.model.", "vision_tower.vision_model.", ""),
        ("model.language_model.", "model.vision_tower.vision_model.", "model."),
        ("model.language_model.", "model.vision_tower.", "model."),
    ],
)
@pytest.mark.parametrize(
    ("case", "axes"),
    [("Gemma3-images", {"text": 3, "vision": 2}), ("Llava-clip", {"text": 3}), ("Llava-clip", {"vision": 2})],
    ids=["Gemma3-both", "Llava-text", "Llava-vision"],
)
def test_image_models_with_names_of_all_versions(case, axes, text, vision, rest, saved, tmp_path):
    def change(tensors):
        renamed = {}
        for name, tensor in tensors.items():
            new = name.replace("language_model.model.", text).replace("vision_tower.", vision)
            new = new.replace("multi_modal_projector.", f"{rest}multi_modal_projector.")
            renamed[new.replace("language_model.lm_head", "lm_head" if rest else "language_model.lm_head")] = tensor
        return renamed

    wide = check(rewritten(saved(case), tmp_path / "narrow", change), tmp_path, None, axes)
    assert f"{text}norm.weight" in wide


def test_qwen2_vl_with_a_flat_config(saved, tmp_path):
    source = rewritten(saved("Qwen2VL-images"), tmp_path / "narrow", lambda tensors: tensors)
    file = source / "config.json"
    config = json.loads(file.read_text())
    flat = {key: value for key, value in config.pop("text_config").items() if key != "model_type"}
    file.write_text(json.dumps({**flat, **config}))
    check(source, tmp_path, 2)
    written = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert written["hidden_size"] == 64
    assert "text_config" not in written


HEADS = {
    "LlamaForSequenceClassification": ("LlamaConfig", NO_HEAD_DIM),
    "LlamaForTokenClassification": ("LlamaConfig", NO_HEAD_DIM),
    "LlamaForQuestionAnswering": ("LlamaConfig", NO_HEAD_DIM),
    "LlamaModel": ("LlamaConfig", NO_HEAD_DIM),
    "Gemma3TextForSequenceClassification": ("Gemma3TextConfig", {**NO_HEAD_DIM, "head_dim": 12}),
    "Qwen3ForSequenceClassification": ("Qwen3Config", {**NO_HEAD_DIM, "tie_word_embeddings": True}),
    "MixtralForSequenceClassification": ("MixtralConfig", {**NO_HEAD_DIM, "num_local_experts": 4}),
    "GPT2ForSequenceClassification": ("GPT2Config", {**GPT2, "pad_token_id": 0}),
    "GPT2ForTokenClassification": ("GPT2Config", GPT2),
    "GPTNeoXForTokenClassification": ("GPTNeoXConfig", ENCODER),
    "BloomForSequenceClassification": (
        "BloomConfig",
        {"hidden_size": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50, "pad_token_id": 0},
    ),
    "FalconForSequenceClassification": ("FalconConfig", ENCODER),
    "OPTForSequenceClassification": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 40,
            "vocab_size": 50,
            "pad_token_id": 0,
        },
    ),
    "BertForQuestionAnswering": ("BertConfig", ENCODER),
    "BertModel": ("BertConfig", ENCODER),
    "RobertaForQuestionAnswering": ("RobertaConfig", ENCODER),
    "ElectraForTokenClassification": ("ElectraConfig", {**ENCODER, "embedding_size": 16}),
    "DebertaV2ForTokenClassification": ("DebertaV2Config", ENCODER),
    "DistilBertForTokenClassification": (
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "vocab_size": 50},
    ),
    "ModernBertForTokenClassification": ("ModernBertConfig", ENCODER),
    "T5ForSequenceClassification": ("T5Config", {**T5, "eos_token_id": 1}),
    "T5ForTokenClassification": ("T5Config", T5),
}


@pytest.mark.parametrize("head", HEADS)
def test_other_heads(head, tmp_path):
    config_class, settings = HEADS[head]
    config = getattr(transformers, config_class)(**settings)
    model = randomize(getattr(transformers, head)(config)).eval()
    model.save_pretrained(tmp_path / "narrow")
    check(tmp_path / "narrow", tmp_path, 2)
