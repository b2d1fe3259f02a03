"""Layers that predict further tokens, which published checkpoints have and transformers ignores, widen too."""

import pytest
import torch
from safetensors.torch import load_file

from helpers import change_tensors, save_model
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

EMBED, VOCABULARY = 48, 50
JOINED = {"enorm": (EMBED,), "hnorm": (EMBED,), "eh_proj": (EMBED, 2 * EMBED)}
OWN_READOUT = {
    "embed_tokens": (VOCABULARY, EMBED),
    "shared_head.norm": (EMBED,),
    "shared_head.head": (VOCABULARY, EMBED),
}
QWEN = {"fc": (EMBED, 2 * EMBED), "norm": (EMBED,), "pre_fc_norm_embedding": (EMBED,), "pre_fc_norm_hidden": (EMBED,)}
# By case: what the predictor's block is like, this block, the beginning of the other tensors' names, and these.
PREDICTORS = {
    "DeepseekV3-untied": (("model.layers.1.",), "model.layers.2.", "model.layers.2.", {**JOINED, **OWN_READOUT}),
    "Glm4Moe-untied": (("model.layers.1.",), "model.layers.2.", "model.layers.2.", {**JOINED, **OWN_READOUT}),
    "Qwen3Next-untied": (("model.layers.1.",), "mtp.layers.0.", "mtp.", QWEN),
    "Mellum-untied": (("model.layers.1.",), "mtp.layers.0.", "mtp.", QWEN),
    "Ernie4_5_Moe-untied": (
        ("model.layers.0.",),
        "model.mtp_block.0.",
        "model.",
        {"mtp_emb_norm.0": (EMBED,), "mtp_hidden_norm.0": (EMBED,), "mtp_linear_proj.0": (EMBED, 2 * EMBED)},
    ),
    "LongcatFlash-untied": (
        tuple(
            f"model.layers.1.{part}.0." for part in ("self_attn", "mlps", "input_layernorm", "post_attention_layernorm")
        ),
        "model.mtp.layers.0.",
        "model.mtp.",
        {
            "embed_tokens": (VOCABULARY, EMBED),
            "norm": (EMBED,),
            **{f"layers.0.{name}.m": (EMBED,) for name in ("enorm", "hnorm")},
            "layers.0.eh_proj": (EMBED, 2 * EMBED),
        },
    ),
    "MiMoV2Flash-untied": (
        ("model.layers.1.self_attn.", "model.layers.0.mlp.", "model.layers.0.input_layernorm."),
        "model.mtp.layers.0.",
        "model.mtp.layers.0.",
        {**JOINED, "pre_mlp_layernorm": (EMBED,), "final_layernorm": (EMBED,)},
    ),
}
# LongCat's layers have two blocks, and its predictor one.
OF_ONE_BLOCK = {"self_attn.0.": "self_attn.", "layernorm.0.": "layernorm.", "mlps.0.": "transformer_layer.mlp."}


@pytest.mark.parametrize(
    "case", [case if case.startswith("Qwen") else pytest.param(case, marks=pytest.mark.slow) for case in PREDICTORS]
)
def test_predictors_widen_with_the_model(case, tmp_path):
    like, block, beginning, others = PREDICTORS[case]

    def names(tensors):
        """Return the name in the predictor of each tensor that it is like."""

        def spelled(name):
            for old, new in OF_ONE_BLOCK.items():
                name = name.replace(old, new)
            return block + name

        return {name: spelled(name.split(".", 3)[3]) for name in tensors if name.startswith(like)}

    def add(tensors):
        copied = {name: tensors[original].clone() for original, name in names(tensors).items()}
        around = {f"{beginning}{name}.weight": torch.randn(shape) for name, shape in others.items()}
        return {**tensors, **copied, **around}

    source = change_tensors(save_model(tmp_path / "narrow", case), add)
    widen(source, tmp_path / "wide", 2, verify=False)
    assert verify(tmp_path / "wide", only=("weights",)).agrees
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert names(wide)
    assert all(wide[name].shape == wide[original].shape for original, name in names(wide).items())
    shapes = {name: tuple(size if size == VOCABULARY else 2 * size for size in others[name]) for name in others}
    assert {name: tuple(wide[f"{beginning}{name}.weight"].shape) for name in others} == shapes
