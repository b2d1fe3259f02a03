"""Layouts and keys that the user insists on: the message says what lies there instead, and what to do."""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from mupscale_cli.checkpoints.layouts.opening import Choice
from mupscale_cli.checkpoints.layouts.table import LAYOUTS
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import CheckpointError

WEIGHTS = {"up.weight": torch.zeros(3, 2)}
SAFETENSORS = "contains safetensors, which have no layout and no key of weights"


@pytest.fixture
def stored(tmp_path):
    """Return a function that makes a folder of a form, and returns it or its file."""

    def make(form, name=""):
        folder = tmp_path / form
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "made-up"}))
        if form == "safetensors":
            save_file(WEIGHTS, folder / "model.safetensors")
        elif form == "torch":
            torch.save({"net": WEIGHTS, "optimizer": {"state": {}}, "step": 3}, folder / "model.pt")
        elif form == "distributed":
            dcp.save({"model": WEIGHTS}, checkpoint_id=folder, no_dist=True)
        elif form == "gguf":
            (folder / "model.gguf").write_bytes(b"GGUF" + bytes(20))
        return folder / name

    return make


def refused(path, **choice):
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path, Choice(**choice))
    return str(error.value), error.value.hint


@pytest.mark.parametrize("layout", [each.name for each in LAYOUTS] + [None])
@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_safetensors_have_neither(layout, name, stored):
    message, hint = refused(stored("safetensors", name), layout=layout, weights_key=None if layout else "model")
    assert SAFETENSORS in message
    assert hint == "omit `--layout` and `--weights-key`"


@pytest.mark.parametrize(
    ("form", "name", "choice", "message", "hint"),
    [
        ("torch", "", {"weights_key": "nets"}, "no weights at `nets`; it holds `net`", "such as `net`"),
        ("torch", "model.pt", {"weights_key": "step"}, "no weights at `step`; it holds `net`", "such as `net`"),
        ("torch", "", {"layout": "nanogpt", "weights_key": "net"}, "has the layout `torch`, not `nanogpt`", "omit"),
        ("torch", "model.pt", {"layout": "lightning"}, "not a checkpoint of Lightning: it has no `", "omit `--layout`"),
        ("torch", "model.pt", {"layout": "distributed", "weights_key": "net"}, "has the layout `torch`, not", "omit"),
        ("torch", "model.pt", {"layout": "torch-shards", "weights_key": "net"}, "has the layout `torch`, not", "omit"),
        ("distributed", "", {"layout": "torch"}, "has the layout `distributed`, not `torch`", "omit `--layout`"),
        ("distributed", "", {"weights_key": "nets"}, "no weights at `nets`; it holds `model`", "such as `model`"),
        ("distributed", ".metadata", {"layout": "distributed"}, "is a part of a distributed checkpoint", "the folder"),
        ("gguf", "", {"layout": "torch"}, "contains a GGUF file", "transformers reads it"),
        ("gguf", "model.gguf", {"weights_key": "model"}, "is a GGUF file", "transformers reads it"),
        ("nothing", "", {"weights_key": "model"}, "contains a config without weights", "weight file"),
    ],
)
def test_the_message_says_what_lies_there(form, name, choice, message, hint, stored):
    found, instead = refused(stored(form, name), **choice)
    assert message in found
    assert hint in instead
