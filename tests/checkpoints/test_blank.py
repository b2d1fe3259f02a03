"""Writing blank torch.save files, and filling them."""

import zipfile

import pytest
import torch

from mupscale_cli.checkpoints.containers.blank import ArchiveWriter, write_checksums
from mupscale_cli.checkpoints.containers.torch_file import blank_tensor, read_torch_file, write_blank_file
from mupscale_cli.dtypes import TensorSpec
from mupscale_cli.errors import OutputError


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("PytorchStreamWriter failed")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match="PytorchStreamWriter"):
        write_blank_file(tmp_path / "x.pt", {})


def pieces(tensor):
    return (memoryview(bytearray(tensor.reshape(-1).view(torch.uint8).numpy())),)


def test_tensors_are_written_in_pieces(tmp_path):
    specs = [TensorSpec("a/0", "BF16", (3, 2)), TensorSpec("b", "I64", ())]
    content = {"a": [blank_tensor(specs[0])], "b": blank_tensor(specs[1]), "c": [1, "x"]}
    slots = write_blank_file(tmp_path / "x.pt", content)
    with ArchiveWriter(slots) as writer:
        writer.write("a/0", 4, pieces(torch.full((4,), 2.0).bfloat16()))
        writer.write("a/0", 0, pieces(torch.full((2,), 1.0).bfloat16()))
        writer.write("b", 0, pieces(torch.tensor(7)))
    write_checksums(slots, [{name: checksum.stretches for name, checksum in writer.checksums.items()}])
    loaded = torch.load(tmp_path / "x.pt", weights_only=True)
    assert loaded["a"][0].tolist() == [[1, 1], [2, 2], [2, 2]]
    assert (loaded["b"].item(), loaded["c"]) == (7, [1, "x"])
    assert zipfile.ZipFile(tmp_path / "x.pt").testzip() is None
    assert {t.spec for t in read_torch_file(tmp_path / "x.pt").tensors.values()} == set(specs)


def test_a_file_stays_open_until_every_tensor_is_complete(tmp_path, monkeypatch):
    """Two threads may see at the same time that a tensor is complete."""
    specs = [TensorSpec("a", "I64", (2,)), TensorSpec("b", "I64", ())]
    slots = write_blank_file(tmp_path / "x.pt", {spec.name: blank_tensor(spec) for spec in specs})
    closed = []
    monkeypatch.setattr(ArchiveWriter, "_close", lambda _self, file, **_: closed.append(file.name))
    with ArchiveWriter(slots) as writer:
        writer.write("a", 0, pieces(torch.tensor([1, 2])))
        writer.write("a", 16, pieces(torch.tensor([], dtype=torch.int64)))  # the other thread, which checks later
        assert closed == []
        writer.write("b", 0, pieces(torch.tensor(3)))
        assert closed == ["x.pt"]
        writer.write("b", 8, pieces(torch.tensor([], dtype=torch.int64)))
        assert closed == ["x.pt"]
        monkeypatch.undo()
