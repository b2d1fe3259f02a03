"""Residual streams that grow balanced keep the function, and training with SGD or Muon at unchanged learning rates."""

import json

import pytest
import torch

from helpers import build
from mupscale_cli.errors import MupscaleError
from mupscale_cli.tasks.options import Size
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen


def grown(case, tmp_path, sizes, **options):
    """Grow a model whose eps is so large that a wrong one shows."""
    model = build(case, torch.float64)
    model.config.rms_norm_eps = 1e-2
    model.save_pretrained(tmp_path / "narrow")
    targets = {axis: Size(size) for axis, size in sizes.items()}
    return widen(tmp_path / "narrow", tmp_path / "wide", None, targets, spread="balanced", dtype="float64", **options)


@pytest.mark.parametrize(
    ("case", "embed"),
    [
        ("Llama-untied", 72),
        ("Llama-untied", 100),
        ("Llama-tied", 72),
        ("Llama-tied", 96),
        ("Qwen3-tied", 72),
        ("Qwen3-tied", 75),
        ("Gemma2-tied", 72),
        ("Gemma2-tied", 96),
        ("Olmo2-untied", 72),
        ("Olmo2-untied", 75),
    ],
)
def test_balanced_streams_keep_the_function(case, embed, tmp_path):
    verification = grown(case, tmp_path, {"embed": embed, "ffn": 61}).verification
    assert verification.agrees, verification
    assert verification.max_rel < 1e-12
    assert verification.worst_module.max_rel < 1e-12
