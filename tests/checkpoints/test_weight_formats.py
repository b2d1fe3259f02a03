"""A new weight format takes one class and one entry in the list of formats."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import mupscale_cli
from helpers import mlp_tensors
from mupscale_cli.checkpoints import reading
from mupscale_cli.checkpoints.formats.base import Weights, WeightsFormat
from mupscale_cli.checkpoints.header import StoredTensor
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import CheckpointError


class Raw(WeightsFormat):
    """Float32 tensors without a header in `weights.raw`; `shapes.json` has their names and shapes."""

    suffixes = (".raw",)
    indices = ("shapes.json",)

    def recognizes(self, file):
        return file.suffix == ".raw"

    def files(self, folder):
        return (folder.path / "weights.raw",) if "weights.raw" in folder.names else ()

    def read(self, folder, files):
        tensors, offset = {}, 0
        with folder.open(files[0].with_name("shapes.json")) as stream:
            shapes = json.load(stream)
        for name, shape in shapes.items():
            tensors[name] = StoredTensor(TensorSpec(name, "F32", tuple(shape)), files[0], offset)
            offset += tensors[name].spec.num_bytes
        return Weights(tensors, {})


@pytest.fixture
def folders(tmp_path):
    """One model in raw format and in safetensors."""
    tensors = mlp_tensors()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "weights.raw").write_bytes(b"".join(value.numpy().tobytes() for value in tensors.values()))
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    (tmp_path / "raw" / "shapes.json").write_text(json.dumps(shapes))
    (tmp_path / "safetensors").mkdir()
    save_file(tensors, tmp_path / "safetensors" / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("named", ["raw", "raw/weights.raw"])
def test_a_format_is_one_class_and_one_entry(named, folders, monkeypatch):
    with pytest.raises(CheckpointError):
        mupscale_cli.widen(folders / named, folders / "wide", 2, recipe="mlp", verify=False)
    monkeypatch.setattr(reading, "FORMATS", (Raw(), *reading.FORMATS))
    mupscale_cli.widen(folders / named, folders / "wide", 2, recipe="mlp", verify=False)
    assert mupscale_cli.verify(folders / "wide", only=["weights", "config", "files"]).agrees
    mupscale_cli.widen(folders / "safetensors", folders / "expected", 2, recipe="mlp", verify=False)
    (wide,) = [file for file in (folders / "wide", folders / "wide" / "model.safetensors") if file.is_file()]
    expected = load_file(folders / "expected" / "model.safetensors")
    assert load_file(wide).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in load_file(wide).items())
