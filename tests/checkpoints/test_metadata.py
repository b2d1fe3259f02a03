"""The metadata of distributed checkpoints is read without running what it names."""

import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from mupscale_cli.checkpoints.containers.distributed import read_distributed
from mupscale_cli.checkpoints.containers.metadata import read_metadata
from mupscale_cli.errors import CheckpointError

warnings.filterwarnings("ignore", message="torch.distributed is disabled")


class Named:
    """Pickled as an attribute of anything."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return getattr, self.arguments


def test_members_that_python_3_11_pickles_by_name_are_read(monkeypatch, tmp_path):
    """From 3.11.0 to 3.11.3, which Debian 12 has, an enumeration's member is `getattr(CLASS, NAME)`."""
    by_name = lambda member, _: (getattr, (type(member), member.name))  # noqa: E731
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    dcp.save({"a": torch.ones(3)}, checkpoint_id=tmp_path, no_dist=True)
    assert b"getattr" in (tmp_path / ".metadata").read_bytes()
    properties = read_metadata(tmp_path / ".metadata").state_dict_metadata["a"].properties
    assert properties.memory_format is torch.contiguous_format


@pytest.mark.parametrize("arguments", [("", "join"), (_MEM_FORMAT_ENCODING, "mro"), (torch.Size, "numel")])
def test_other_attributes_are_refused(arguments, tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Named(*arguments)))
    with pytest.raises(CheckpointError, match=r"names `builtins\.getattr`, whose code could run"):
        read_distributed(tmp_path)
