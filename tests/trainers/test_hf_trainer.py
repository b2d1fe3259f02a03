"""The Trainer of transformers, as its users run it: float32, the default optimizer, twenty steps after the growth."""

import pytest
import transformers
from hf_trainer import RandomTokens, arguments, losses

import mupscale
from helpers import build

REL = 4 * 2**-23  # float32's rounding of the losses and of the sums in the norms

SETTINGS = {
    "adamw_torch_fused": {},  # the default
    "sgd": {"learning_rate": 0.1, "optim_args": "momentum=0.9"},
    "adafactor": {},
}


@pytest.mark.parametrize("optim", SETTINGS)
def test_twenty_steps_follow_the_narrow_run(optim, tmp_path):
    settings = {"optim": optim, "max_steps": 40, "save_steps": 20, "max_grad_norm": 0.5, **SETTINGS[optim]}
    data = RandomTokens()
    narrow = transformers.Trainer(
        build("Llama-tied").train(), arguments(tmp_path / "run", settings), train_dataset=data
    )
    narrow.train()
    wide = mupscale.widen(tmp_path / "run/checkpoint-20", tmp_path / "wide", factor=2).output
    args = arguments(tmp_path / "wider", settings)
    model = transformers.AutoModelForCausalLM.from_pretrained(wide)
    plain = transformers.Trainer(model, args, train_dataset=data)
    with pytest.raises(ValueError, match="different number of parameter groups"):  # as the page says
        plain.train(resume_from_checkpoint=str(wide))
    trainer = mupscale.WideTrainer(
        transformers.AutoModelForCausalLM.from_pretrained(wide).train(), args, train_dataset=data
    )
    trainer.train(resume_from_checkpoint=str(wide))
    expected, found = losses(narrow), losses(trainer)
    assert found.keys() == set(range(1, 41))
    for step in range(21, 41):
        assert found[step] == pytest.approx(expected[step], rel=REL), step
