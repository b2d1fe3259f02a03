"""Lightning's Trainer continues with a widened `.ckpt` as with the narrow one."""

import pytest
import torch
import transformers

import mupscale_cli as mupscale

lightning = pytest.importorskip("lightning.pytorch")

EPOCHS, BATCHES = 3, 3
REL = 16 * 2**-24  # the reference computes norms, softmax and rotary tables in float32: some roundings of it
SCHEDULES = {
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20),
}


class Module(lightning.LightningModule):
    """A user's module, which holds the model in an attribute and makes it from its arguments."""

    def __init__(self, config, **settings):
        super().__init__()
        self.save_hyperparameters({"config": config, **settings})
        self.net = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).train()
        self.losses = []

    def training_step(self, tokens, _index):
        loss = self.net(tokens, labels=tokens).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": SCHEDULES[self.hparams.schedule](optimizer), "interval": "step"},
        }


def trained(module, folder, *callbacks, resume=None):
    """Train a module, with a checkpoint after each epoch, and return the loss of each step."""
    saving = lightning.callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[*callbacks, saving],
        gradient_clip_val=0.3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    tokens = torch.randint(50, (2 * BATCHES, 9), generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.DataLoader(tokens, batch_size=2)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return module.losses


@pytest.mark.parametrize("case", ["Llama-tied", "Qwen3-untied"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_trainer_continues_as_in_the_narrow_run(case, schedule, saved, tmp_path):
    config = transformers.AutoConfig.from_pretrained(saved(case)).to_dict()
    torch.manual_seed(0)
    narrow = trained(Module(config, schedule=schedule, lr=3e-3), tmp_path / "narrow")
    widened = mupscale.widen(tmp_path / "narrow" / "epoch=0.ckpt", tmp_path / "wide.ckpt", 2)
    assert widened.verification.agrees
    module = Module.load_from_checkpoint(widened.output, weights_only=True)
    assert module.net.config.hidden_size == 2 * config["hidden_size"]
    callback = mupscale.WideCallback(widened.output)
    wide = trained(module, tmp_path / "on", callback, resume=widened.output)
    assert len(wide) == (EPOCHS - 1) * BATCHES
    assert wide == pytest.approx(narrow[BATCHES:], rel=REL)
    assert wide[BATCHES:] != pytest.approx(narrow[BATCHES : 2 * BATCHES], rel=REL)
