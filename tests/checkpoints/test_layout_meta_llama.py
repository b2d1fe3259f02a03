"""Meta's `consolidated.00.pth` and params.json, and torchtune's own files, are widened in kind."""

import json
import shutil

import pytest
import torch

from mupscale_cli.errors import CheckpointError
from mupscale_cli.tasks.widen import widen

META = {"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "multiple_of": 4, "norm_eps": 1e-5, "vocab_size": 11}
INNER = 24
BLOCK = {"wq": (8, 8), "wk": (4, 8), "wv": (4, 8), "wo": (8, 8), "w1": (INNER, 8), "w3": (INNER, 8), "w2": (8, INNER)}


def state_dict(names, norms):
    torch.manual_seed(0)
    shapes = {f"layers.0.{names[key]}.weight": shape for key, shape in BLOCK.items()}
    shapes |= {"tok_embeddings.weight": (11, 8), "output.weight": (11, 8), **dict.fromkeys(norms, (8,))}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


NAMES = {key: f"attention.{key}" if key[1] in "qkvo" else f"feed_forward.{key}" for key in BLOCK}
NORMS = ("layers.0.attention_norm.weight", "layers.0.ffn_norm.weight", "norm.weight")
COLUMNS = ("layers.0.attention.wo.weight", "layers.0.feed_forward.w2.weight")
BY_CHANNELS = (*COLUMNS, "tok_embeddings.weight")  # as before Llama 3


def save_narrow(source, ranks=1, columns=COLUMNS):
    """Write a checkpoint in one file for each rank, and return all of it."""
    source.mkdir()
    sizes = {**META, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 12} if ranks > 1 else META
    narrow = state_dict(NAMES, NORMS)
    if ranks > 1:
        narrow |= {name: torch.randn(12, 8) for name in ("tok_embeddings.weight", "output.weight")}
    for rank in range(ranks):
        part = {
            name: tensor if tensor.dim() == 1 else tensor.chunk(ranks, int(name in columns))[rank].contiguous()
            for name, tensor in narrow.items()
        }
        torch.save(part, source / f"consolidated.{rank:02}.pth")
    (source / "params.json").write_text(json.dumps(sizes))
    return narrow


def test_meta_llama(tmp_path):
    narrow = save_narrow(tmp_path / "narrow")
    output = widen(tmp_path / "narrow", tmp_path / "wide", 2, verify=False).output
    wide, params = torch.load(output / "consolidated.00.pth"), json.loads((output / "params.json").read_text())
    assert (params["dim"], params["n_heads"], params["multiple_of"]) == (16, 4, 8)
    assert wide["layers.0.feed_forward.w1.weight"].shape == (2 * INNER, 16)
    assert list(wide) == list(narrow)
    assert torch.equal(wide["tok_embeddings.weight"], narrow["tok_embeddings.weight"].repeat_interleave(2, 1))
    assert torch.equal(wide["output.weight"], narrow["output.weight"].repeat_interleave(2, 1) / 2)


@pytest.mark.parametrize("columns", [COLUMNS, BY_CHANNELS], ids=["llama-3", "llama-2"])
def test_the_files_of_several_ranks_become_one(columns, tmp_path):
    narrow = save_narrow(tmp_path / "parts", 4, columns)
    (tmp_path / "whole").mkdir()
    torch.save(narrow, tmp_path / "whole" / "consolidated.00.pth")
    shutil.copy(tmp_path / "parts" / "params.json", tmp_path / "whole")
    widths = [widen(tmp_path / kind, tmp_path / f"{kind}-x2", 2, verify=False).output for kind in ("parts", "whole")]
    assert sorted(file.name for file in widths[0].iterdir()) == [
        "consolidated.00.pth",
        "mupscale.json",
        "params.json",
    ]
    assert (widths[0] / "consolidated.00.pth").read_bytes() == (widths[1] / "consolidated.00.pth").read_bytes()


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ((2,), "lacks `consolidated.02.pth`: it has 3 of the 4 files"),
        ((0, 3), "lacks `consolidated.00.pth`, `consolidated.03.pth`: it has 2 of the 4 files"),
    ],
)
def test_missing_ranks_are_named(removed, message, tmp_path):
    save_narrow(tmp_path / "narrow", 4)
    for rank in removed:
        (tmp_path / "narrow" / f"consolidated.{rank:02}.pth").unlink()
    with pytest.raises(CheckpointError) as caught:
        widen(tmp_path / "narrow", tmp_path / "wide", 2)
    assert message in str(caught.value)


def test_files_of_two_checkpoints_are_refused(tmp_path):
    save_narrow(tmp_path / "narrow", 4)
    other = torch.load(tmp_path / "narrow" / "consolidated.01.pth")
    torch.save({**other, "norm.weight": torch.ones(4)}, tmp_path / "narrow" / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"consolidated.01.pth` has float32 \[4\] as `norm.weight`"):
        widen(tmp_path / "narrow", tmp_path / "wide", 2)


def test_a_single_rank_is_refused(tmp_path):
    save_narrow(tmp_path / "narrow", 2)
    with pytest.raises(CheckpointError, match="is one of 2 files of a checkpoint"):
        widen(tmp_path / "narrow" / "consolidated.01.pth", tmp_path / "wide", 2)


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
