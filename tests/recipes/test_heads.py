"""Heads beside the readout, and layers that the reference class ignores, compute the same after widening."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear

from helpers import MODELS, change_tensors, save_model
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.models import build_reference_model
from mupscale_cli.verification.precision import everything_in

HEAD = "v_head.summary"
TOKENS = torch.arange(1, 17).reshape(2, 8)
FAST = ("Llama-untied", "Granite-tied", "Olmo-tied", "GPT2-tied")


def value(folder):
    """Return the value head of trl on the last hidden states of a checkpoint's language model, in float64."""
    checkpoint = open_checkpoint(folder)
    model = build_reference_model(checkpoint, torch.float64)
    stored = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    with torch.no_grad(), everything_in(torch.float64):
        hidden = model(input_ids=TOKENS, output_hidden_states=True).hidden_states[-1]
        return linear(hidden, stored[f"{HEAD}.weight"], stored[f"{HEAD}.bias"])


def with_head(directory, case):
    """Save a model in float64 with a value head beside its readout."""
    change_tensors(save_model(directory, case), lambda tensors: {n: t.double() for n, t in tensors.items()})
    width = build_reference_model(open_checkpoint(directory), torch.float64).get_output_embeddings().in_features
    generator = torch.Generator().manual_seed(0)
    head = {
        f"{HEAD}.weight": torch.randn(1, width, generator=generator, dtype=torch.float64),
        f"{HEAD}.bias": torch.randn(1, generator=generator, dtype=torch.float64),
    }
    return change_tensors(directory, lambda tensors: {**tensors, **head})


CAUSAL = [
    case
    for case, (head, _, _) in MODELS.items()
    if head.endswith(("ForCausalLM", "LMHeadModel")) and head[:7] != "Roberta"
]


@pytest.mark.parametrize(
    ("case", "factor"),
    [
        ("Llama-tied", 1.5),  # fresh units
        *(pytest.param(case, 2, marks=() if case in FAST else pytest.mark.slow) for case in CAUSAL),
    ],
)
def test_a_value_head_gives_the_same_values(case, factor, tmp_path):
    narrow = with_head(tmp_path / "narrow", case)
    widened = widen(narrow, tmp_path / "wide", factor)
    assert set(widened.verification.unused) == {f"{HEAD}.weight", f"{HEAD}.bias"}
    torch.testing.assert_close(value(tmp_path / "wide"), value(narrow), rtol=1e-12, atol=1e-12)
