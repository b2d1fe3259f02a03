"""Configs of public models with their sizes only, and the tensors that such a model has."""

from functools import cache
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from mupscale_cli.dtypes import TensorSpec


def _decoder(hidden, inner, layers, heads, kv, head_dim, **more):
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": head_dim,
        **more,
    }


def _llama(*sizes, **more):
    return {"model_type": "llama", "tie_word_embeddings": True, **_decoder(*sizes), **more}


def _qwen3(*sizes, tied=True):
    return {"model_type": "qwen3", **_decoder(*sizes), "vocab_size": 151936, "tie_word_embeddings": tied}


def _gemma3(*sizes):
    more = {"vocab_size": 262144, "sliding_window": 512, "query_pre_attn_scalar": 256}
    return {"model_type": "gemma3_text", **_decoder(*sizes), **more}


def _gpt2(width, layers, heads):
    return {"model_type": "gpt2", "n_embd": width, "n_layer": layers, "n_head": heads, "vocab_size": 50257}


def _olmo2(hidden, inner, layers, heads):
    more = {"vocab_size": 100352, "tie_word_embeddings": False}
    sizes = _decoder(hidden, inner, layers, heads, heads, None)
    return {"model_type": "olmo2", **{key: value for key, value in sizes.items() if value is not None}, **more}


def _plain(model_type, hidden, layers, heads, **more):
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **more,
    }


PUBLIC: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, 8, 128),
    "Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, 8, 128),
    "Qwen3-4B": _qwen3(2560, 9728, 36, 32, 8, 128),
    "Qwen3-8B": _qwen3(4096, 12288, 36, 32, 8, 128, tied=False),
    "Llama-3.2-1B": _llama(2048, 8192, 16, 32, 8, 64, vocab_size=128256),
    "Llama-3.2-3B": _llama(3072, 8192, 28, 24, 8, 128, vocab_size=128256),
    "SmolLM2-135M": _llama(576, 1536, 30, 9, 3, 64, vocab_size=49152),
    "SmolLM2-360M": _llama(960, 2560, 32, 15, 5, 64, vocab_size=49152),
    "SmolLM2-1.7B": _llama(2048, 8192, 24, 32, 32, 64, vocab_size=49152),
    "gemma-3-270m": _gemma3(640, 2048, 18, 4, 1, 256),
    "gemma-3-1b": _gemma3(1152, 6912, 26, 4, 1, 256),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "Mixtral-8x7B": {"model_type": "mixtral", **_decoder(4096, 14336, 32, 32, 8, 128), "num_local_experts": 8},
    "Qwen3-30B-A3B": {
        "model_type": "qwen3_moe",
        **_decoder(2048, 6144, 48, 32, 4, 128),
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "vocab_size": 151936,
    },
    "OLMo-2-1B": _olmo2(2048, 8192, 16, 16),
    "OLMo-2-7B": _olmo2(4096, 11008, 32, 32),
    "pythia-70m": _plain("gpt_neox", 512, 6, 8, vocab_size=50304),
    "pythia-160m": _plain("gpt_neox", 768, 12, 12, vocab_size=50304),
    "pythia-410m": _plain("gpt_neox", 1024, 24, 16, vocab_size=50304),
    "ViT-S": _plain("vit", 384, 12, 6),
    "ViT-B": _plain("vit", 768, 12, 12),
    "ViT-L": _plain("vit", 1024, 24, 16),
}
_AUTO = {"vit": transformers.AutoModelForImageClassification}


@cache
def specs(name: str) -> tuple[TensorSpec, ...]:
    """Return the tensors that `save_pretrained` writes for a public model, built without data."""
    config = transformers.AutoConfig.for_model(**PUBLIC[name])
    with torch.device("meta"):
        auto = _AUTO.get(config.model_type, transformers.AutoModelForCausalLM)
        model = auto.from_config(config, dtype=torch.bfloat16)
    saved = revert_weight_conversion(model, model.state_dict())
    shapes = {key: tuple(value.shape) for key, value in saved.items()}
    if getattr(config, "tie_word_embeddings", False):
        shapes = {key: shape for key, shape in shapes.items() if key not in model.all_tied_weights_keys}
    return tuple(TensorSpec(key, "BF16", shape) for key, shape in shapes.items())


def full_config(name: str) -> dict[str, Any]:
    """Return the config.json that `save_pretrained` writes for a public model."""
    config: dict[str, Any] = transformers.AutoConfig.for_model(**PUBLIC[name]).to_dict()
    return config
