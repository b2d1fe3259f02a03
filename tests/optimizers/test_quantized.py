"""The 8-bit state of bitsandbytes is read as the 32-bit one that it stands for."""

import pytest
import torch

from helpers import build
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.finding import open_optimizer
from mupscale_cli.optimizers.quantized import dequantized
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

BLOCK = 256


def quantized(entry, number, signed):
    """Return an entry as bitsandbytes stores it, with a table of equal steps."""
    table = torch.linspace(-1.0 if signed else 0.0, 1.0, 256)
    blocks = torch.nn.functional.pad(entry.flatten(), (0, -entry.numel() % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1)
    nearest = (blocks / largest[:, None].clamp(min=1e-30)).unsqueeze(-1).sub(table).abs().argmin(dim=-1)
    codes = nearest.flatten()[: entry.numel()].view(entry.shape).to(torch.uint8)
    return {f"state{number}": codes, f"qmap{number}": table, f"absmax{number}": largest}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A narrow model in training, whose matrices have 8 bits; vectors have 32, as small tensors do."""
    folder = tmp_path_factory.mktemp("quantized") / "narrow"
    model = build("Llama-tied")
    generator = torch.Generator().manual_seed(0)
    named, states = list(model.named_parameters()), {}
    for number, (_, parameter) in enumerate(named):
        average = torch.randn(parameter.shape, generator=generator)
        square = torch.rand(parameter.shape, generator=generator)
        entries = {"state1": average, "state2": square}
        if parameter.dim() > 1:
            entries = {**quantized(average, 1, signed=True), **quantized(square, 2, signed=False)}
        states[number] = {"step": 3, "__bnb_optimizer_quant_state__": entries}
    settings = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    group = {**settings, "alpha": 0.0, "t_alpha": None, "t_beta3": None, "params": list(states)}
    model.save_pretrained(folder)
    torch.save({"state": states, "param_groups": [group]}, folder / "optimizer.pt")
    return folder


def test_what_is_written_is_exact(source, tmp_path):
    """Each wide entry is the product of code and scale times 1/(m c): nothing is rounded to 8 bits again."""
    result = widen(source, tmp_path / "wide", 3, verify=False)
    assert result.record["optimizer_state"]["kinds"] == ["adamw8bit"]
    narrow = dequantized(torch.load(source / "optimizer.pt"))["state"]
    wide = torch.load(tmp_path / "wide" / "optimizer.pt")
    names = [name for group in wide["param_groups"] for name in group["param_names"]]
    number = names.index("model.layers.0.mlp.up_proj.weight")
    order = [name for name, _ in build("Llama-tied").named_parameters()]
    before = narrow[order.index(names[number])]
    for key, factor in (("state1", 1 / 3), ("state2", 1 / 9)):  # m = 9, c = 1/3
        copies = before[key].repeat_interleave(3, 0).repeat_interleave(3, 1)
        torch.testing.assert_close(wide["state"][number][key], copies * factor, rtol=2**-23, atol=0)
    assert wide["state"][number]["step"] == 3
    found = verify(tmp_path / "wide", dtype="float64", steps=3)
    assert found.agrees
    assert found.training.agrees, found.training
    assert found.training.carried


def test_a_part_is_read_as_the_whole(source):
    """Blocks of rows begin anywhere in the blocks of the scales."""
    opened = open_optimizer(source / "optimizer.pt", None)
    from mupscale_cli.checkpoints.rows import RowReader

    stored = opened.stored["state/0/state1"]
    whole = dequantized(torch.load(source / "optimizer.pt"))["state"][0]["state1"].flatten()
    with RowReader() as reader:
        for first, count in ((0, 1), (255, 2), (300, 700), (whole.numel() - 5, 5)):
            part = torch.empty(count)
            reader.read(stored, 4 * first, memoryview(part.numpy()).cast("B"))
            assert torch.equal(part, whole[first : first + count])


def test_blocks_of_an_unknown_size_are_refused():
    entry = {"state1": torch.zeros(600, dtype=torch.uint8), "qmap1": torch.zeros(256), "absmax1": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="600 elements has 2 scales"):
        dequantized({0: entry})
