"""bitsandbytes continues from a widened 8-bit state; the figures are those of the page `optimizers`."""

import pytest
import torch
import transformers
from doc_commands import MANUAL, blocks

from helpers import build
from mupscale_cli.optimizers.quantized import dequantized
from mupscale_cli.optimizers.trainers.scaling import scale_optimizer
from mupscale_cli.tasks.widen import widen

bitsandbytes = pytest.importorskip("bitsandbytes")
STEPS = 10


def make(model):
    """Return the optimizer of the runs; tensors of 256 elements have 8 bits already, to have them in a tiny model."""
    return bitsandbytes.optim.AdamW8bit(model.parameters(), lr=3e-3, weight_decay=0.1, min_8bit_size=256)


def train(model, optimizer, first, steps):
    for step in range(first, first + steps):
        tokens = torch.randint(50, (4, 16), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()


def with_8_bits(optimizer):
    """Store the state with 8 bits again: the lines of the page, with the limit of these runs."""
    *_, text = blocks(MANUAL / "optimizers.md", "python")
    exec(text.replace("4096", "256"), {"bitsandbytes": bitsandbytes, "optimizer": optimizer})  # noqa: S102


def with_32_bits(optimizer):
    for state in optimizer.state.values():
        whole = dequantized(dict(state))
        state.clear()
        state.update(whole)


def continued(folder, steps, change=lambda _: None):
    """Load a model and its state; return its parameters after some steps."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = make(model)
    if (folder / "mupscale.json").exists():
        scale_optimizer(optimizer, model, folder)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt"))
    change(optimizer)
    train(model, optimizer, STEPS, steps)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def distance(narrow, wide, factor):
    """Return the largest difference of a wide matrix from the copies of the narrow one, relative to its norm."""
    differences = []
    for name, parameter in narrow.items():
        if "mlp" in name and parameter.dim() > 1:
            copies = parameter.repeat_interleave(factor, 0).repeat_interleave(factor, 1) / factor
            differences.append(float((wide[name] - copies).norm() / copies.norm()))
    return max(differences)


@pytest.mark.parametrize("factor", [2, 3])
def test_steps_from_a_widened_state(factor, tmp_path):
    folder = tmp_path / "narrow"
    model = build("Llama-tied", dtype=torch.float32)
    optimizer = make(model)
    train(model, optimizer, 0, STEPS)
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    widen(folder, tmp_path / "wide", factor, verify=False)
    wide = tmp_path / "wide"
    # The first step is the narrow one, to the rounding of float32.
    assert distance(continued(folder, 1), continued(wide, 1), factor) < 32 * 2**-24
    # Later steps differ by what the narrow run loses to 8 bits, which the wide one does not.
    narrow, unrounded, grown = continued(folder, STEPS), continued(folder, STEPS, with_32_bits), continued(wide, STEPS)
    of_8_bits = distance(narrow, unrounded, 1)
    assert 1e-3 < of_8_bits < 1e-2
    assert distance(unrounded, grown, factor) < 32 * 2**-24
    assert distance(narrow, grown, factor) == pytest.approx(of_8_bits, rel=1e-3)
    # With 8 bits again, the wide run loses as much as the narrow one.
    assert distance(narrow, continued(wide, STEPS, with_8_bits), factor) < 2 * of_8_bits
