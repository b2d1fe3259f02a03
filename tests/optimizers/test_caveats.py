"""What is not exact is said by `hparams`, `param_groups`, `scale_optimizer` and `grow` in the same words."""

import warnings

import pytest
import torch
import transformers

from helpers import build
from mupscale_cli.optimizers.hyperparameters import Settings, hyperparameters
from mupscale_cli.optimizers.torch_groups import param_groups
from mupscale_cli.optimizers.trainers.scaling import scale_optimizer
from mupscale_cli.tasks.growing.grow import grow
from mupscale_cli.tasks.widen import widen


def said(action):
    """Return the warnings of an action."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        action()
    return {str(each.message) for each in found if issubclass(each.category, UserWarning)}


def adafactor(parameters, lr):
    return torch.optim.Adafactor(parameters, lr, eps=(2.0**-23, 1e-3))


@pytest.mark.parametrize(("make", "kind", "count"), [(adafactor, "torchadafactor", 2), (torch.optim.AdamW, "adamw", 0)])
def test_all_say_what_hparams_says(make, kind, count, saved, tmp_path):
    made = widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(made.output)
    narrow = build("Llama-tied", torch.float32)
    optimizer = make(narrow.parameters(), lr=1e-3)
    expected = set(hyperparameters(made.record, Settings(1e-3, kind)).warnings)
    assert len(expected) == count
    assert said(lambda: param_groups(model, made.output, lr=1e-3, optimizer=kind)) == expected
    assert said(lambda: scale_optimizer(make(model.parameters(), lr=1e-3), model, made.output)) == expected
    assert said(lambda: grow(narrow, optimizer, factor=2)) == expected


def test_new_blocks_are_named(tmp_path):
    narrow = build("Llama-tied", torch.float32)
    optimizer = torch.optim.AdamW(narrow.parameters(), lr=1e-3)
    (text,) = said(lambda: grow(narrow, optimizer, layers=narrow.config.num_hidden_layers + 1))
    assert "are in new blocks, which learn from the first step on" in text
