"""Lightning: `WideCallback` gives the optimizers of a module the groups of the wide model, and clips."""

import pytest
import torch
import transformers

from mupscale_cli import WideCallback
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.widen import widen

lightning = pytest.importorskip("lightning.pytorch")

CLIP = 0.3
REL = 16 * 2**-24  # the reference computes norms, softmax and rotary tables in float32: some roundings of it
OPTIMIZERS = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=3e-3),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.3, momentum=0.9),
}


class Module(lightning.LightningModule):
    """A user's module, which holds the model in an attribute."""

    def __init__(self, folder, optimizer):
        super().__init__()
        self.net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).train()
        self.optimizer = OPTIMIZERS[optimizer]
        self.losses = []

    def training_step(self, tokens, _index):
        loss = self.net(tokens, labels=tokens).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        groups = [{"params": [], "weight_decay": decay} for decay in (0.1, 0.0)]
        for parameter in self.parameters():
            groups[parameter.dim() < 2]["params"].append(parameter)
        optimizer = self.optimizer(groups)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, 2)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], [2])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trained(module, *callbacks, **settings):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=8,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"gradient_clip_val": CLIP, **settings},
    )
    tokens = torch.randint(50, (16, 9), generator=torch.Generator().manual_seed(0))
    trainer.fit(module, torch.utils.data.DataLoader(tokens, batch_size=2))
    return module.losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_module_trains_like_the_narrow_one(optimizer, accumulated, saved, tmp_path):
    narrow = saved("Llama-tied")
    wide = widen(narrow, tmp_path / "wide", 2, verify=False).output
    settings = {"accumulate_grad_batches": accumulated}
    expected = trained(Module(narrow, optimizer), **settings)
    found = trained(Module(wide, optimizer), WideCallback(wide), **settings)
    assert found == pytest.approx(expected, rel=REL)
    unclipped = trained(Module(narrow, optimizer), gradient_clip_val=None, **settings)
    assert unclipped[-1] != pytest.approx(expected[-1], rel=REL), "clipping did nothing, so that it was not tried"


def test_clipping_by_value_is_refused(saved, tmp_path):
    wide = widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False).output
    with pytest.raises(PlanError, match="clipping by value"):
        trained(Module(wide, "sgd"), WideCallback(wide), gradient_clip_algorithm="value")
