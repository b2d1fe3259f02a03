"""A file as open_clip's training script saves it is widened in kind, and the losses of the runs are the same."""

import json

import pytest
import torch

import mupscale_cli as mupscale
from trainer_runs import assert_same_run

clip = pytest.importorskip("open_clip.model")

SIZES = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2},
}


def made(sizes):
    """Return a model and its optimizer, with the groups of the script: what it does not decay, then the rest."""
    model = clip.CLIP(**sizes)
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        is_plain = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (plain if is_plain else decayed).append(parameter)
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}]
    return model, torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)


def losses(model, optimizer, steps):
    found = []
    for step in steps:
        own = torch.Generator().manual_seed(step)
        images, texts = torch.randn(4, 3, 32, 32, generator=own), torch.randint(64, (4, 16), generator=own)
        image, text, scale = model(images, texts)[:3]
        loss = torch.nn.functional.cross_entropy(scale * image @ text.T, torch.arange(4))
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
    saved = {"epoch": 1, "name": "run", "state_dict": narrow.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "narrow" / "epoch_latest.pt")
    config = {"model_cfg": SIZES, "preprocess_cfg": {}}
    (tmp_path / "narrow" / "open_clip_config.json").write_text(json.dumps(config))

    folder = mupscale.widen(tmp_path / "narrow", tmp_path / "wide", 2).output
    wide, scaled = made(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"])
    mupscale.scale_optimizer(scaled, wide, folder)
    loaded = torch.load(folder / "epoch_latest.pt", weights_only=True)
    assert loaded["epoch"] == 1
    wide.load_state_dict(loaded["state_dict"])
    scaled.load_state_dict(loaded["optimizer"])
    assert_same_run(losses(narrow, optimizer, range(3, 9)), losses(wide, scaled, range(3, 9)))
