"""The Trainer of transformers grows its model during the run, and its losses and norms stay those of a narrow run."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from hf_trainer import CLIP, REL, RandomTokens, arguments, losses, trained

from helpers import build
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.growing.schedule import GrowthSchedule
from mupscale_cli.tasks.growing.trainer import GrowingTrainer, GrowthCallback

GROWTH = GrowthSchedule({0.25: 2, 5: {"axes": {"embed": 3, "ffn": 2}}})  # before the steps 3 and 6 of 8


def growing(model, folder, settings):
    return GrowingTrainer(model, arguments(folder, settings), train_dataset=RandomTokens(), growth=GROWTH)


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}])
def test_losses_and_norms_stay(settings, tmp_path):
    expected = trained("Llama-tied", tmp_path / "narrow", settings)
    assert expected[8][1] > CLIP, "the trainer clips"
    model = build("Llama-tied", torch.float64).train()
    trainer = growing(model, tmp_path / "wide", settings)
    trainer.train()
    assert trainer.model is model
    assert model.config.hidden_size == 6 * build("Llama-tied").config.hidden_size
    checkpointed = {name for name, module in model.named_modules() if getattr(module, "gradient_checkpointing", False)}
    assert ("model.layers.1" in checkpointed) == ("gradient_checkpointing" in settings)
    assert losses(trainer).keys() == expected.keys()
    for step, values in losses(trainer).items():
        assert values == pytest.approx(expected[step], rel=REL), step
    # A checkpoint from between the growths continues with the second one.
    middle = tmp_path / "wide" / "checkpoint-4"
    wide = transformers.AutoModelForCausalLM.from_pretrained(middle, dtype=torch.float64).train()
    resumed = growing(wide, tmp_path / "resumed", settings)
    resumed.train(resume_from_checkpoint=str(middle))
    assert wide.config == model.config
    for step in range(5, 9):
        assert losses(resumed)[step] == pytest.approx(expected[step], rel=REL), step


def test_what_cannot_grow_is_refused_before_the_first_step():
    state = SimpleNamespace(max_steps=10, global_step=0)
    one = SimpleNamespace(world_size=1, n_gpu=1, deepspeed=None)
    with pytest.raises(PlanError, match="several processes"):
        GrowthCallback(GROWTH).on_train_begin(SimpleNamespace(world_size=2), state, None, model=None)
    impossible = GrowthCallback(GrowthSchedule({0.5: {"axes": {"hidden_size": 2}}, 0.6: {"axes": {"heads": 2}}}))
    with pytest.raises(PlanError, match="heads"):
        impossible.on_train_begin(one, state, None, model=build("Llama-tied"))
