"""The written tensors: values and types, for any block size."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.engine.shards import write_shards
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from outputs import digests, repeated


def test_weights_are_repeated_and_divided_over_summed_axes(saved, tmp_path):
    """Factors 2 and 4 make every share a float, so the expected values need no rounding."""
    widen(saved("Llama-tied"), tmp_path / "wide", 2, {"ffn": 4}, verify=False)
    before = load_file(saved("Llama-tied") / "model.safetensors")
    after = load_file(tmp_path / "wide" / "model.safetensors")
    layer = "model.layers.1."
    assert after.keys() == before.keys()
    expected = {
        "model.embed_tokens.weight": repeated(before["model.embed_tokens.weight"], 1, 2),
        "model.norm.weight": repeated(before["model.norm.weight"], 2) / 2,
        f"{layer}input_layernorm.weight": repeated(before[f"{layer}input_layernorm.weight"], 2),
        f"{layer}mlp.up_proj.weight": repeated(before[f"{layer}mlp.up_proj.weight"], 4, 2) / 2,
        f"{layer}mlp.up_proj.bias": repeated(before[f"{layer}mlp.up_proj.bias"], 4),
        f"{layer}mlp.down_proj.weight": repeated(before[f"{layer}mlp.down_proj.weight"], 2, 4) / 4,
        # Rows are 2 kv heads of 8: whole heads are repeated, not rows.
        f"{layer}self_attn.v_proj.weight": (
            before[f"{layer}self_attn.v_proj.weight"]
            .view(2, 8, 48)
            .repeat_interleave(2, 0)
            .reshape(32, 48)
            .repeat_interleave(2, 1)
            / 2
        ),
        # Columns are 2 kv heads of 2 queries of 8: a copied kv head brings its queries along.
        f"{layer}self_attn.o_proj.weight": (
            before[f"{layer}self_attn.o_proj.weight"]
            .view(48, 2, 16)
            .repeat_interleave(2, 1)
            .reshape(48, 64)
            .repeat_interleave(2, 0)
            / 2
        ),
    }
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_the_type_of_every_tensor_is_kept(dtype, saved, tmp_path):
    found = widen(saved("Qwen3-tied", dtype=dtype), tmp_path / "wide", 3, dtype="float64")
    assert found.verification.agrees
    assert found.verification.max_rel < 1e-12
    assert {tensor.dtype for tensor in load_file(tmp_path / "wide" / "model.safetensors").values()} == {dtype}


RECIPE = """
axes:
  hidden: {size: from shapes, about: units}
  group: {size: from shapes, about: groups of a permutation}
widen: [hidden, group]
tensors:
  weight: "hidden, ."
  readout: "., /hidden"
  lookup: "group, hidden"
  mask: "hidden"
  step: keep
  blob: keep
"""


def test_integers_and_booleans_are_copied_along_their_axes(tmp_path):
    (tmp_path / "mixed.yaml").write_text(RECIPE)
    tensors = {
        "weight": torch.randn(4, 3),
        "readout": torch.randn(2, 4).bfloat16(),
        "lookup": torch.arange(8, dtype=torch.int64).reshape(2, 4) - 2**62,
        "mask": torch.tensor([True, False, False, True]),
        "step": torch.tensor(1234567, dtype=torch.int32),
        "blob": torch.arange(5, dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "mixed.safetensors")
    widen(
        tmp_path / "mixed.safetensors", tmp_path / "wide.safetensors", 3, {"group": 2}, recipe=tmp_path / "mixed.yaml"
    )
    after = load_file(tmp_path / "wide.safetensors")
    assert torch.equal(after["weight"], repeated(tensors["weight"], 3))
    assert torch.equal(after["lookup"], repeated(tensors["lookup"], 2, 3))
    assert torch.equal(after["mask"], repeated(tensors["mask"], 3))
    for name in ("step", "blob"):
        assert torch.equal(after[name], tensors[name])
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in tensors.items()}
    # The three shares of a bfloat16 add up to it exactly.
    assert torch.equal(after["readout"].double().view(2, 4, 3).sum(-1), tensors["readout"].double())


def test_empty_tensors_and_scalars_are_copied(tmp_path):
    (tmp_path / "odd.yaml").write_text(
        "axes: {hidden: {size: from shapes, about: units}}\nwiden: [hidden]\n"
        'tensors: {weight: "hidden, .", nothing: keep, scale: keep}\n'
    )
    tensors = {"weight": torch.randn(3, 1), "nothing": torch.empty(0, 4), "scale": torch.tensor(0.5)}
    save_file(tensors, tmp_path / "odd.safetensors")
    widen(tmp_path / "odd.safetensors", tmp_path / "wide.safetensors", 2, recipe=tmp_path / "odd.yaml", verify=False)
    after = load_file(tmp_path / "wide.safetensors")
    assert after["nothing"].shape == (0, 4)
    assert after["scale"].shape == ()
    assert after["scale"] == 0.5


@pytest.mark.parametrize("block_bytes", [1, 100, 3000])
@pytest.mark.parametrize("case", ["Llama-tied", "GPT2-tied", "ResNet-basic"])
def test_the_bytes_do_not_depend_on_the_block_size(block_bytes, case, saved, tmp_path):
    """A large model has many blocks; with small blocks, a small model has many too."""
    found = open_checkpoint(saved(case))
    plan = plan_widening(found.path, factor=3)
    written = []
    for size in (block_bytes, 1 << 30):
        (tmp_path / str(size)).mkdir()
        write_shards(plan.shards, found.tensors, tmp_path / str(size), metadata={"format": "pt"}, block_bytes=size)
        written.append(digests(tmp_path / str(size)))
    assert written[0] == written[1]
