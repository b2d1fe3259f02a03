"""Copies of experts leave the loss that balances them as it is."""

import pytest
import torch
import transformers

from helpers import MODELS, save_model
from mupscale_cli.tasks.widen import widen

CASES = (
    *("Mixtral-untied", "Olmoe-untied", "Qwen2Moe-untied", "Qwen3Moe-untied", "Qwen3Next-untied", "FlexOlmo-untied"),
    *(
        "MiniMax-untied",
        "GptOss-untied",
        "GraniteMoe-untied",
        "GraniteMoeHybrid-untied",
        "Jamba-untied",
        "JetMoe-tied",
        "Dbrx-untied",
    ),
)


@pytest.mark.parametrize(
    "case", [case if case == "Mixtral-untied" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_balancing_loss_stays(case, tmp_path):
    """A loss of E times the sum over E experts doubles if each has a copy; the coefficient is halved for that."""
    narrow = save_model(tmp_path / "narrow", case, dtype=torch.float64)
    wide = widen(narrow, tmp_path / "wide", axes={"experts": 2}).output
    tokens = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    options = {"dtype": torch.float64, "experts_implementation": "eager"}
    losses = []
    for folder in (narrow, wide):
        model = getattr(transformers, MODELS[case][0]).from_pretrained(folder, **options).double().eval()
        with torch.no_grad():
            found = [model(tokens, labels=tokens, output_router_logits=on).loss for on in (True, False)]
        losses.append((found[0] - found[1]).item())
    assert losses[0] > 0
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
