"""A new architecture takes one YAML file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.user_models import load_user_module

NETWORK = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, inner = config["width"], config["inner"]
        self.scale = width**0.5
        self.input, self.norm = nn.Linear(4, width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.output = nn.Linear(width, 3)

    def forward(self, x):
        x = self.input(x) * self.scale
        return self.output(x + self.down(self.up(self.norm(x)).relu()))

def build(config):
    return Network(config)

def inputs(config, generator):
    return torch.randn(2, 4, generator=generator, dtype=torch.float64)
"""
RECIPE = """
about: a made-up network that multiplies its input by the root of its width
match: {model_type: [made-up]}
axes:
  embed: {size: width, about: the residual stream}
  ffn: {size: inner, about: neurons of the feed-forward layer}
widen: [embed, ffn]
config: {width: embed, inner: ffn}
tensors:
  "input.weight": "embed, . | embed^-0.5"
  "input.bias": "embed | embed^-0.5"
  "{norm,down}.bias": embed
  "norm.weight": embed
  "up.weight": "ffn, /embed"
  "up.bias": ffn
  "down.weight": "embed, /ffn"
  "output.weight": "., /embed"
  "output.bias": "."
"""


@pytest.fixture
def made_up(tmp_path):
    """Save a random checkpoint of the network next to the code that builds it."""
    (tmp_path / "network.py").write_text(NETWORK)
    config = {"model_type": "made-up", "width": 6, "inner": 10}
    _, build = load_user_module(f"{tmp_path / 'network.py'}:build")
    torch.manual_seed(0)
    tensors = {name: torch.randn_like(value) for name, value in build(config).state_dict().items()}
    source = tmp_path / "narrow"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    save_file(tensors, source / "model.safetensors")
    return source


def widen_with(made_up, recipe, factor, axes=None):
    file = made_up.parent / "made_up.yaml"
    file.write_text(recipe)
    model = f"{made_up.parent / 'network.py'}:build"
    return widen(made_up, made_up.parent / "wide", factor, axes, recipe=file, dtype="float64", model=model)


@pytest.mark.parametrize(("factor", "axes"), [(2, None), (3, {"ffn": 2}), (1, {"embed": 4})])
def test_one_file_widens_a_new_architecture(factor, axes, made_up):
    widened = widen_with(made_up, RECIPE, factor, axes)
    assert widened.verification.agrees
    assert widened.verification.max_rel < 1e-12
    assert widened.plan.config["width"] == 6 * (axes or {}).get("embed", factor)


def test_wrong_rule_fails_verification(made_up):
    assert not widen_with(made_up, RECIPE.replace("/ffn", "ffn"), 2).verification.agrees
