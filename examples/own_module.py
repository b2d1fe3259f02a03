"""Widen a network of your own, which no library knows: python own_module.py FOLDER

`build` is what mupscale needs: a function from a config to the module. The recipe, which says what can be copied in it,
is drafted by experiment.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

config = {"width": 16, "hidden": 24}


class Net(nn.Module):
    """A residual network for numbers."""

    def __init__(self, width, hidden):
        super().__init__()
        self.input = nn.Linear(8, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.output = nn.Linear(width, 2)

    def forward(self, x):
        x = self.input(x)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.output(x)


def build(config):
    return Net(config["width"], config["hidden"])


def mupscale(*words):
    print("$ mupscale", *words, flush=True)
    subprocess.run([sys.executable, "-m", "mupscale_cli", *words], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python own_module.py FOLDER")
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    net = build(config)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(100):
        x = torch.randn(64, 8)
        loss = nn.functional.mse_loss(net(x), torch.stack([x.prod(1), x.sum(1)], 1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_file(net.state_dict(), folder / "net.safetensors")
    (folder / "net.config.json").write_text(json.dumps(config))

    model, recipe, wide = f"{__file__}:build", str(folder / "net.yaml"), str(folder / "wide.safetensors")
    mupscale("recipes", "infer", model, "-o", recipe)
    mupscale("widen", str(folder / "net.safetensors"), "-f", "2", "--recipe", recipe, "--model", model, "-o", wide)
    mupscale("verify", wide, "--model", model)
