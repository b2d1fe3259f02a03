"""The norm that determines the size of noise, compared with that of the wide tensor."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mupscale_cli.engine.norms import measured_std
from mupscale_cli.engine.streaming import expand_whole
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.source import find_source


@pytest.mark.parametrize("kind", ["random", "low rank", "zero", "few columns", "heavy"])
def test_the_spectral_norm_matches_the_wide_tensor(kind, tmp_path):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(300, 20 if kind == "few columns" else 200, generator=generator)
    if kind == "low rank":
        matrix = matrix[:, :2] @ torch.randn(2, 200, generator=generator)
    if kind == "zero":
        matrix.zero_()
    if kind == "heavy":
        matrix[5, 7] = 1000
    tensors = {"0.weight": torch.randn(matrix.shape[1], 4), "2.weight": matrix, "4.weight": torch.randn(3, 300)}
    save_file(tensors, tmp_path / "net.safetensors")
    plan = plan_widening(tmp_path / "net.safetensors", factor=2, recipe="mlp", noise=1.0)
    tensor = next(tensor for tensor in plan.tensors if tensor.target.name == "2.weight")
    std = measured_std(tensor, lambda start, count: matrix[start : start + count])
    wide = (matrix / 2).repeat_interleave(2, 0).repeat_interleave(2, 1).double()
    exact = torch.linalg.matrix_norm(wide, 2) / sum(size**0.5 for size in wide.shape)
    assert std == pytest.approx(float(exact), rel=0.01)


def test_the_spectral_norm_respects_scales_of_fused_parts(saved):
    """Wider heads of GPT-2 scale the queries, which are a third of one tensor."""
    source = find_source(saved("GPT2-untied"))
    plan = plan_widening(source, axes={"embed": 2, "d": 2, "ffn": 2}, noise=1.0)
    tensor = next(tensor for tensor in plan.tensors if tensor.target.name.endswith("0.attn.c_attn.weight"))
    assert len(tensor.parts) > 1
    narrow = load_file(source.checkpoint.files[0])[tensor.source.name]
    wide = expand_whole(replace(tensor, noise=None), narrow).double()
    std = measured_std(tensor, lambda start, count: narrow[start : start + count])
    assert std == pytest.approx(float(torch.linalg.matrix_norm(wide, 2)) / sum(s**0.5 for s in wide.shape), rel=0.01)
