"""What timm's training script saves is widened in kind, and the wide run has the losses of the narrow one."""

import argparse
import json

import pytest
import torch

import mupscale_cli as mupscale
from trainer_runs import assert_same_run

timm = pytest.importorskip("timm")
optim = pytest.importorskip("timm.optim")
models = pytest.importorskip("timm.models")
utils = pytest.importorskip("timm.utils")

ARCHITECTURE = "vit_tiny_patch16_224"
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}


def made(sizes):
    model = timm.create_model(ARCHITECTURE, **sizes)
    return model, optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)


def losses(model, optimizer, steps):
    found = []
    for step in steps:
        own = torch.Generator().manual_seed(step)
        images, labels = torch.randn(4, 3, 32, 32, generator=own), torch.randint(10, (4,), generator=own)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def test_the_wide_run_has_the_losses_of_the_narrow_one(tmp_path):
    torch.manual_seed(0)
    narrow, optimizer = made(SIZES)
    losses(narrow, optimizer, range(3))
    (tmp_path / "narrow").mkdir()
    arguments = argparse.Namespace(model=ARCHITECTURE, model_kwargs=SIZES, opt="adamw", lr=1e-3)
    average = utils.ModelEmaV3(narrow, decay=0.9)
    where = str(tmp_path / "narrow")
    saver = utils.CheckpointSaver(
        narrow, optimizer, args=arguments, model_ema=average, checkpoint_dir=where, recovery_dir=where
    )
    saver.save_checkpoint(0, metric=1.0)
    config = {"architecture": ARCHITECTURE, "model_args": SIZES, "pretrained_cfg": {}}
    (tmp_path / "narrow" / "config.json").write_text(json.dumps(config))

    folder = mupscale.widen(tmp_path / "narrow", tmp_path / "wide", 2).output
    sizes = json.loads((folder / "config.json").read_text())["model_args"]
    assert sizes["embed_dim"] == 64
    wide, scaled = made({**SIZES, **sizes})
    mupscale.scale_optimizer(scaled, wide, folder)
    models.resume_checkpoint(wide, str(folder / "last.pth.tar"), optimizer=scaled)
    averaged, _ = made({**SIZES, **sizes})
    models.load_checkpoint(averaged, str(folder / "last.pth.tar"), use_ema=True)
    assert_same_run(losses(narrow, optimizer, range(3, 9)), losses(wide, scaled, range(3, 9)))
