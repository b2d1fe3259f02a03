"""Folders of torch.distributed.checkpoint: what is read of them, and written again, is what was saved."""

import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from mupscale_cli.checkpoints.containers import distributed
from mupscale_cli.checkpoints.containers.distributed import load_distributed, read_distributed, write_blank_folder
from mupscale_cli.errors import CheckpointError

CONTENT = {
    "model": {"up.weight": torch.zeros(3, 2)},
    "rng": [{"python": (3, (1, 2)), "torch": torch.ones(4)}, {"torch": torch.zeros(4)}],
    "optim": {
        "state": {"0": {"step": torch.ones(())}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "lrs": [torch.ones(())] * 2, "params": ["up.weight"]}],
    },
}
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
    pairs = [(found[key], expected[key]) for key in expected] if isinstance(expected, dict) else []
    if isinstance(expected, list):
        pairs = list(zip(found, expected, strict=True))
    for one, other in pairs:
        assert_same(one, other)
    if not pairs:
        assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


def test_lists_with_tensors_remain_lists(tmp_path):
    dcp.save(CONTENT, checkpoint_id=tmp_path / "narrow", no_dist=True)
    contents = read_distributed(tmp_path / "narrow")
    dcp_to_torch_save(tmp_path / "narrow", tmp_path / "torch.pt")
    assert_same(load_distributed(contents), torch.load(tmp_path / "torch.pt", weights_only=True))

    write_blank_folder(tmp_path / "again", contents.content)
    planned = [FileSystemReader(tmp_path / name).read_metadata().planner_data for name in ("narrow", "again")]
    assert planned[1] == planned[0]


def test_a_list_of_absurd_length_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_LONGEST_LIST", 1)
    dcp.save(CONTENT, checkpoint_id=tmp_path / "narrow", no_dist=True)
    with pytest.raises(CheckpointError, match="a list with more than 1 elements"):
        read_distributed(tmp_path / "narrow")


@pytest.mark.parametrize("places", [7, {"model.up.weight": 5}, {"model.up.weight": ()}, {"model.up.weight": ([],)}])
def test_places_of_an_unknown_form_are_refused(places, tmp_path):
    dcp.save({"model": {"up.weight": torch.zeros(3, 2)}}, checkpoint_id=tmp_path, no_dist=True)
    metadata = FileSystemReader(tmp_path).read_metadata()
    metadata.planner_data = places
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="no valid places of its values"):
        read_distributed(tmp_path)
