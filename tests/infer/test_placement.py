"""What loading does to tensors, found by loading the numbers of their values."""

import pytest
import torch
from torch import nn

from mupscale_cli.infer.placement import find_placement, numbered


class Net(nn.Module):
    """Two tensors that loading converts, and a buffer that is not on disk."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Parameter(torch.empty(4, 3))
        self.flipped = nn.Parameter(torch.empty(3, 2))
        self.register_buffer("own", torch.ones(2))

    def load(self, disk, scale=1):
        with torch.no_grad():
            self.pair.copy_(torch.cat([disk["a"], disk["b"]]) * scale)
            self.flipped.copy_(disk["c"].T)
        return self


DISK = {"a": torch.randn(2, 3).double(), "b": torch.randn(2, 3).double(), "c": torch.randn(2, 3).double()}


@pytest.fixture(autouse=True)
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_placement_fills_a_model_as_loading_does():
    placement = find_placement(Net().load(numbered(DISK)), DISK)
    filled, loaded = placement.fill(Net(), DISK), Net().load(DISK)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in filled.state_dict().items())
    assert torch.equal(filled.own, torch.ones(2))


def test_values_that_loading_computes_have_no_placement():
    assert find_placement(Net().load(numbered(DISK), scale=2), DISK) is None
    assert find_placement(Net().load(numbered(DISK)), {**DISK, "lost": torch.zeros(1)}) is None
