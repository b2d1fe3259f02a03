"""Heads beside the readout, and layers that the reference class ignores, compute the same after widening."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import embedding, linear, rms_norm

from helpers import MODELS, change_config, change_tensors, save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.models import build_reference_model
from mupscale_cli.verification.precision import everything_in

HEAD = "v_head.summary"
TOKENS = torch.arange(1, 17).reshape(2, 8)
FAST = ("Llama-untied", "Granite-tied", "Olmo-tied", "GPT2-tied")


def value(folder):
    """Return the value head of trl on the last hidden states of a checkpoint's language model, in float64."""
    checkpoint = open_checkpoint(folder)
    model = build_reference_model(checkpoint, torch.float64)
    stored = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    with torch.no_grad(), everything_in(torch.float64):
        hidden = model(input_ids=TOKENS, output_hidden_states=True).hidden_states[-1]
        return linear(hidden, stored[f"{HEAD}.weight"], stored[f"{HEAD}.bias"])


def with_head(directory, case):
    """Save a model in float64 with a value head beside its readout."""
    change_tensors(save_model(directory, case), lambda tensors: {n: t.double() for n, t in tensors.items()})
    width = build_reference_model(open_checkpoint(directory), torch.float64).get_output_embeddings().in_features
    generator = torch.Generator().manual_seed(0)
    head = {
        f"{HEAD}.weight": torch.randn(1, width, generator=generator, dtype=torch.float64),
        f"{HEAD}.bias": torch.randn(1, generator=generator, dtype=torch.float64),
    }
    return change_tensors(directory, lambda tensors: {**tensors, **head})


CAUSAL = [
    case
    for case, (head, _, _) in MODELS.items()
    if head.endswith(("ForCausalLM", "LMHeadModel")) and head[:7] != "Roberta"
]


@pytest.mark.parametrize(
    ("case", "factor"),
    [
        ("Llama-tied", 1.5),  # fresh units
        *(pytest.param(case, 2, marks=() if case in FAST else pytest.mark.slow) for case in CAUSAL),
    ],
)
def test_a_value_head_gives_the_same_values(case, factor, tmp_path):
    narrow = with_head(tmp_path / "narrow", case)
    widened = widen(narrow, tmp_path / "wide", factor)
    assert set(widened.verification.unused) == {f"{HEAD}.weight", f"{HEAD}.bias"}
    torch.testing.assert_close(value(tmp_path / "wide"), value(narrow), rtol=1e-12, atol=1e-12)


def further_logits(folder, scratch):
    """Return the logits of DeepSeek-V3's layer for a further token, computed with transformers' decoder layer.

    It reads the next token's embedding and the stream side by side, each behind a norm (arXiv 2412.19437, section 2.2).
    """
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    longer = shutil.copytree(folder, scratch)
    change_config(longer, num_hidden_layers=layers + 1)
    model = build_reference_model(open_checkpoint(longer), torch.float64)
    prefix = f"model.layers.{layers}."
    own = {
        n.removeprefix(prefix): t.double() for n, t in load_file(folder / "model.safetensors").items() if prefix in n
    }
    eps, outputs = model.config.rms_norm_eps, []

    def norm(values, name):
        return rms_norm(values, values.shape[-1:], own[f"{name}.weight"], eps)

    def enter(_layer, arguments, keywords):
        embedded = embedding(TOKENS.roll(-1, 1), own["embed_tokens.weight"])
        both = torch.cat([norm(embedded, "enorm"), norm(arguments[0], "hnorm")], dim=-1)
        return (linear(both, own["eh_proj.weight"]), *arguments[1:]), keywords

    layer = model.model.layers[layers]
    layer.register_forward_pre_hook(enter, with_kwargs=True)
    layer.register_forward_hook(lambda _layer, _arguments, output: outputs.append(output))
    with torch.no_grad(), everything_in(torch.float64):
        model(input_ids=TOKENS)
        hidden = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
        return linear(norm(hidden, "shared_head.norm"), own["shared_head.head.weight"])


@pytest.mark.parametrize("factor", [2, 1.5])
def test_the_layer_for_a_further_token_computes_the_same(factor, tmp_path):
    narrow = save_model(tmp_path / "narrow", "DeepseekV3-untied", num_hidden_layers=3)
    change_config(narrow, num_hidden_layers=2, num_nextn_predict_layers=1)
    generator = torch.Generator().manual_seed(0)

    def further(tensors):
        embed, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
        width = embed.shape[1]
        norms = {
            f"{name}.weight": torch.rand(width, generator=generator) for name in ("enorm", "hnorm", "shared_head.norm")
        }
        own = {
            **norms,
            "eh_proj.weight": torch.randn(width, 2 * width, generator=generator),
            "embed_tokens.weight": embed + 1,
            "shared_head.head.weight": head + 1,
        }
        stored = {**tensors, **{f"model.layers.2.{name}": value for name, value in own.items()}}
        return {name: value.double() for name, value in stored.items()}

    change_tensors(narrow, further)
    found = widen(narrow, tmp_path / "wide", factor).verification
    assert "model.layers.2.eh_proj.weight" in found.unused
    before, after = (further_logits(tmp_path / name, tmp_path / f"{name}-longer") for name in ("narrow", "wide"))
    torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-11)
