"""Small models with nothing left at its default, and checkpoints of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

# Some configs ask that hidden_size is a multiple of the number of heads, though head_dim is given: 48 is for 4, 8, 12.
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 50,
    "head_dim": 8,
    "pad_token_id": 0,
}
STABLELM = {**SIZES, "head_dim": None, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 50, "n_positions": 64}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "num_labels": 3}

# Name of the case: class in transformers, its config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"{name}-{'tied' if tied else 'untied'}": (
            f"{name}ForCausalLM",
            config,
            {**SIZES, **more, "tie_word_embeddings": tied},
        )
        for name, config, more in (
            ("Llama", "LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
            ("Mistral", "MistralConfig", {"sliding_window": 6}),
            ("Qwen2", "Qwen2Config", {}),
            ("SmolLM3", "SmolLM3Config", {}),
            ("Phi3", "Phi3Config", {}),
            ("Glm4", "Glm4Config", {}),
            ("Starcoder2", "Starcoder2Config", {}),
            ("Granite", "GraniteConfig", {"logits_scaling": 3.0, "residual_multiplier": 0.5}),
            ("Cohere", "CohereConfig", {"use_qk_norm": True}),
            ("Cohere2", "Cohere2Config", {}),
            ("Mixtral", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
            ("Qwen3", "Qwen3Config", {}),
            ("Olmo2", "Olmo2Config", {}),
            ("Olmo3", "Olmo3Config", {}),
            ("Gemma", "GemmaConfig", {}),
            ("Gemma2", "Gemma2Config", {}),
            ("Gemma3", "Gemma3TextConfig", {}),
        )
        for tied in (False, True)
    },
    "GPT2-untied": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "tie_word_embeddings": False}),
    "GPT2-tied": ("GPT2LMHeadModel", "GPT2Config", {**GPT2, "n_inner": 40}),
    **{
        f"StableLm-{'parallel' if parallel else 'serial'}": (
            "StableLmForCausalLM",
            "StableLmConfig",
            {**STABLELM, "use_parallel_residual": parallel, "tie_word_embeddings": parallel},
        )
        for parallel in (False, True)
    },
    "GPTNeoX-untied": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**SIZES, "head_dim": None}),
    "GPTNeoX-tied": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**SIZES, "head_dim": None, "tie_word_embeddings": True}),
    "Bert-tied": ("BertForMaskedLM", "BertConfig", {**SIZES, "head_dim": None}),
    "Bert-pooler": ("BertForSequenceClassification", "BertConfig", {**SIZES, "head_dim": None}),
    "ResNet-basic": ("ResNetForImageClassification", "ResNetConfig", {**RESNET, "layer_type": "basic"}),
    "ResNet-bottleneck": ("ResNetForImageClassification", "ResNetConfig", {**RESNET, "layer_type": "bottleneck"}),
}


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter and floating-point buffer of the state dict random values, gains and biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / fan_in**0.5
                tensor.copy_(values.abs() + 0.5 if name.endswith("running_var") else values)
    return model


def build(case: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random transformers model of a case of `MODELS`."""
    import transformers

    model_class, config_class, settings = MODELS[case]
    config = getattr(transformers, config_class)(**{**settings, **changes})
    return randomise(getattr(transformers, model_class)(config).to(dtype)).eval()


def save_model(directory: Path, case: str = "Llama-untied", *, max_shard_size: str = "5GB", **changes: Any) -> Path:
    """Save a random transformers model as `save_pretrained` does; returns the directory."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    build(case, **changes).save_pretrained(directory, max_shard_size=max_shard_size)
    return directory


@cache
def mlp_tensors() -> dict[str, torch.Tensor]:
    """The tensors of `Sequential(Linear(5, 8), ReLU, Linear(8, 6), ReLU, Linear(6, 3))`, random."""
    sizes = {"0": (8, 5), "2": (6, 8), "4": (3, 6)}
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{i}.weight": torch.randn(shape, generator=generator) for i, shape in sizes.items()}
    return {**tensors, **{f"{i}.bias": torch.randn(shape[0], generator=generator) for i, shape in sizes.items()}}


def save_mlp(file: Path) -> Path:
    """Save a multilayer perceptron without a config as one safetensors file; returns the file."""
    save_file(mlp_tensors(), file)
    return file
