"""A `.ckpt` of Lightning is widened in kind: weights, state, schedule and arguments."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mupscale_cli.tasks.widen import widen

BEST = "ModelCheckpoint{'monitor': None}"


@pytest.fixture
def checkpoint(saved, tmp_path):
    """A file as Lightning 2.6 writes it, of a module that holds the model in the attribute `net`."""
    folder = saved("Llama-untied")
    weights = {f"net.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    optimizer = torch.optim.AdamW([tensor.clone().requires_grad_() for tensor in weights.values()], lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, 0.25)
    optimizer.step()
    content = {
        "epoch": 1,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": weights,
        "callbacks": {BEST: {"kth_value": torch.tensor(float("inf"))}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [schedule.state_dict()],
        "hyper_parameters": {"config": json.loads((folder / "config.json").read_text()), "lr": 0.5},
    }
    torch.save(content, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_everything_that_depends_on_the_size_is_widened(checkpoint, tmp_path):
    narrow = torch.load(checkpoint)
    widened = widen(checkpoint, tmp_path / "wide.ckpt", 2)
    assert widened.verification.agrees
    wide = torch.load(widened.output)
    assert list(wide) == list(narrow)
    before, after = narrow["hyper_parameters"]["config"], wide["hyper_parameters"]["config"]
    assert after["hidden_size"] == 2 * before["hidden_size"]
    assert list(wide["state_dict"]) == list(narrow["state_dict"])
    groups = wide["optimizer_states"][0]["param_groups"]
    assert wide["lr_schedulers"][0]["base_lrs"] == [group["initial_lr"] for group in groups]
    assert {group["lr"] for group in groups} == {0.5, 0.25}
    assert wide["callbacks"][BEST]["kth_value"] == float("inf")
    assert wide["epoch"] == 1


def test_sizes_beside_a_file_without_arguments(checkpoint, tmp_path):
    content = torch.load(checkpoint)
    config = content["hyper_parameters"].pop("config")
    del content["hyper_parameters"]
    torch.save(content, checkpoint)
    (tmp_path / "config.json").write_text(json.dumps(config))
    widened = widen(checkpoint, tmp_path / "wide.ckpt", 2, verify=False)
    assert "hyper_parameters" not in torch.load(widened.output)
    sizes = json.loads((tmp_path / "wide.config.json").read_text())
    assert sizes["hidden_size"] == 2 * config["hidden_size"]
