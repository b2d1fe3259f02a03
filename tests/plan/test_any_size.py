"""Growth to random sizes: plan and bytes agree, growths multiply, and width and depth commute."""

import math
from fractions import Fraction

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.engine.shards import write_shards
from mupscale_cli.engine.streaming import expand_whole
from mupscale_cli.plan.request import Size
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from outputs import digests

LEAST = {"kv": 2, "g": 2, "ffn": 40}


@settings(max_examples=6)
@given(data=st.data())
def test_the_bytes_are_those_of_the_plan(data, saved, tmp_path_factory):
    """In blocks of any size; each tensor that is expanded as a whole is what was written."""
    case = data.draw(st.sampled_from(["Llama-untied", "Qwen3-tied", "Gemma2-tied"]))
    sizes = {name: data.draw(st.integers(size, 3 * size), label=name) for name, size in LEAST.items()}
    heads, copies = sizes["kv"] * sizes["g"], data.draw(st.integers(1, 3), label="d")
    sizes["ffn"] += 1  # something grows
    sizes["embed"] = heads * data.draw(
        st.integers(math.ceil(48 / heads), math.ceil(144 / heads)), label="embed / heads"
    )
    sizes["d"] = 8 * copies
    amounts = {name: Size(size) for name, size in sizes.items()}
    plan = plan_widening(saved(case), axes=amounts, fresh=data.draw(st.sampled_from(["init", "zero"])))
    assert {axis.name: axis.wide_size for axis in plan.axes} == sizes
    folder = tmp_path_factory.mktemp("any")
    stored = open_checkpoint(saved(case)).tensors
    block = data.draw(st.sampled_from([256, 5000, 10**6]), label="block")
    write_shards(plan.shards, stored, folder, metadata={"format": "pt"}, block_bytes=block)
    narrow, wide = (load_file(place / "model.safetensors") for place in (saved(case), folder))
    for tensor in plan.tensors:
        assert tuple(wide[tensor.target.name].shape) == tensor.target.shape
        assert torch.equal(wide[tensor.target.name], expand_whole(tensor, narrow[tensor.source.name])), tensor


@settings(max_examples=4)
@given(first=st.integers(2, 4), second=st.integers(2, 3), axis=st.sampled_from(["embed", "ffn"]))
def test_growths_multiply(first, second, axis, saved, tmp_path_factory):
    """Copies of copies are copies at the same places; shares of shares are rounded twice."""
    folder, source = tmp_path_factory.mktemp("twice"), saved("Llama-untied", dtype=torch.float64)
    widen(source, folder / "one", axes={axis: first}, verify=False)
    widen(folder / "one", folder / "two", axes={axis: second}, verify=False)
    widen(source, folder / "at once", axes={axis: first * second}, verify=False)
    twice, once = (load_file(folder / name / "model.safetensors") for name in ("two", "at once"))
    for name, tensor in once.items():
        torch.testing.assert_close(twice[name], tensor, rtol=1e-14, atol=0)


def test_width_and_depth_commute(saved, tmp_path):
    source, amounts = saved("Llama-untied"), {"embed": Fraction(3, 2), "kv": Fraction(3, 2), "ffn": Size(52)}
    plain = {"fresh": "zero", "verify": False, "processes": 1}
    widen(source, tmp_path / "width", axes=amounts, **plain)
    widen(tmp_path / "width", tmp_path / "width, depth", layers=4, **plain)
    widen(source, tmp_path / "depth", layers=4, **plain)
    widen(tmp_path / "depth", tmp_path / "depth, width", axes=amounts, **plain)
    widen(source, tmp_path / "both", axes=amounts, layers=4, **plain)
    ways = [load_file(tmp_path / way / "model.safetensors") for way in ("width, depth", "depth, width", "both")]
    for way in ways[1:]:
        assert way.keys() == ways[0].keys()
        assert all(torch.equal(tensor, ways[0][name]) for name, tensor in way.items())


def test_processes_write_the_same_padded_bytes(saved, tmp_path):
    amounts = {"embed": Fraction(3, 2), "h": Fraction(3, 2), "ffn": Size(47)}
    for processes in (1, 3):
        widen(saved("GPT2-tied"), tmp_path / str(processes), axes=amounts, verify=False, processes=processes)
    one, three = (digests(tmp_path / name) for name in ("1", "3"))
    assert one["model.safetensors"] == three["model.safetensors"]
