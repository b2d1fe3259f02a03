"""Meta's `consolidated.00.pth` and params.json, and torchtune's own files, are widened in kind."""

import json

import torch

from mupscale_cli.tasks.widen import widen

META = {"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "multiple_of": 4, "norm_eps": 1e-5, "vocab_size": 11}
INNER = 24
BLOCK = {"wq": (8, 8), "wk": (4, 8), "wv": (4, 8), "wo": (8, 8), "w1": (INNER, 8), "w3": (INNER, 8), "w2": (8, INNER)}


def state_dict(names, norms):
    torch.manual_seed(0)
    shapes = {f"layers.0.{names[key]}.weight": shape for key, shape in BLOCK.items()}
    shapes |= {"tok_embeddings.weight": (11, 8), "output.weight": (11, 8), **dict.fromkeys(norms, (8,))}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_meta_llama(tmp_path):
    source = tmp_path / "narrow"
    source.mkdir()
    names = {key: f"attention.{key}" if key[1] in "qkvo" else f"feed_forward.{key}" for key in BLOCK}
    norms = ("layers.0.attention_norm.weight", "layers.0.ffn_norm.weight", "norm.weight")
    narrow = state_dict(names, norms)
    torch.save(narrow, source / "consolidated.00.pth")
    (source / "params.json").write_text(json.dumps(META))
    output = widen(source, tmp_path / "wide", 2, verify=False).output
    wide, params = torch.load(output / "consolidated.00.pth"), json.loads((output / "params.json").read_text())
    assert (params["dim"], params["n_heads"], params["multiple_of"]) == (16, 4, 8)
    assert wide["layers.0.feed_forward.w1.weight"].shape == (2 * INNER, 16)
    assert list(wide) == list(narrow)
    assert torch.equal(wide["tok_embeddings.weight"], narrow["tok_embeddings.weight"].repeat_interleave(2, 1))
    assert torch.equal(wide["output.weight"], narrow["output.weight"].repeat_interleave(2, 1) / 2)


def test_torchtune(tmp_path):
    source = tmp_path / "narrow"
    source.mkdir()
    attention = {"wq": "attn.q_proj", "wk": "attn.k_proj", "wv": "attn.v_proj", "wo": "attn.output_proj"}
    names = {key: attention.get(key, f"mlp.{key}") for key in BLOCK}
    torch.save(
        state_dict(names, ("layers.0.sa_norm.scale", "layers.0.mlp_norm.scale", "norm.scale")),
        source / "ft-model-00001-of-00001.bin",
    )
    sizes = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    sizes |= {"num_hidden_layers": 1, "intermediate_size": INNER, "vocab_size": 11}
    (source / "config.json").write_text(json.dumps(sizes))
    output = widen(source, tmp_path / "wide", 2, verify=False).output
    wide = torch.load(output / "ft-model-00001-of-00001.bin")
    assert wide["layers.0.attn.q_proj.weight"].shape == (16, 16)
    assert json.loads((output / "config.json").read_text())["hidden_size"] == 16
