"""An optimizer as the narrow run makes it gets the groups of the wide model."""

import pytest
import torch
import transformers

from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.torch_groups import clip_grad_norm_, param_groups
from mupscale_cli.optimizers.trainers.scaling import scale_optimizer
from mupscale_cli.tasks.widen import widen


def load(folder, dtype=torch.float64):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def train(model, optimizer, steps, scheduler=None, clip=torch.nn.utils.clip_grad_norm_):
    found = []
    for step in range(steps):
        tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(step))
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        clip(model.parameters() if clip is torch.nn.utils.clip_grad_norm_ else optimizer, 0.3)
        optimizer.step()
        if scheduler:
            scheduler.step()
        found.append(loss.item())
    return found


def test_the_groups_are_those_of_param_groups(wide):
    model = load(wide.output)
    optimizer = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.1 * (p.dim() > 1)} for p in model.parameters()], 1e-3
    )
    scale_optimizer(optimizer, model, wide.output)
    expected = {
        name: group
        for group in param_groups(model, wide.output, lr=1e-3, weight_decay=0.1)
        for name in group["param_names"]
    }
    seen = []
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            seen.append(name)
            assert {key: group[key] for key in ("lr", "eps", "weight_decay", "clip_weight")} == {
                key: expected[name][key] for key in ("lr", "eps", "weight_decay", "clip_weight")
            }
    assert sorted(seen) == sorted(expected)
    with pytest.raises(PlanError, match="groups of a widened model already"):
        scale_optimizer(optimizer, model, wide.output)


SCHEDULES = {
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "warm-up and cosine": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 2), torch.optim.lr_scheduler.CosineAnnealingLR(o, 4)],
        [1],
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_that_exists_already_follows(schedule, saved, tmp_path):
    """A fresh Adagrad whose sums do not begin at 0, and a schedule that was made before the groups."""
    losses = []
    folder = saved("Llama-tied")
    for place in (folder, widen(folder, tmp_path / "wide", 3, verify=False).output):
        model = load(place).train()
        optimizer = torch.optim.Adagrad(model.parameters(), lr=0.03, initial_accumulator_value=1e-3)
        scheduler = SCHEDULES[schedule](optimizer)
        clip = torch.nn.utils.clip_grad_norm_
        if place != folder:
            scale_optimizer(optimizer, model, place, schedulers=[scheduler])
            clip = clip_grad_norm_
        losses.append(train(model, optimizer, 5, scheduler, clip))
    assert losses[1] == pytest.approx(losses[0], rel=16 * 2**-24)
    assert losses[0][0] != losses[0][4]


def test_a_module_that_holds_the_model_has_other_names(wide):
    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = load(wide.output)

    module = Module()
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0, momentum=0.9)
    scale_optimizer(optimizer, module, wide.output)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates["net.model.layers.0.mlp.down_proj.weight"] == 1.0  # m c^2, with c = 1/4 and m = 16
    assert rates["net.model.embed_tokens.weight"] == 4.0


def test_what_cannot_be_scaled_is_refused(wide, saved):
    model = load(wide.output)
    used = torch.optim.AdamW(model.parameters())
    train(model, used, 1)
    with pytest.raises(PlanError, match="has taken 1 steps"):
        scale_optimizer(used, model, wide.output)
    other = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(PlanError, match="not one of the model"):
        scale_optimizer(other, model, wide.output)
    narrow = load(saved("Qwen3-tied"))
    with pytest.raises(CheckpointError, match="has the shape"):
        scale_optimizer(torch.optim.AdamW(narrow.parameters()), narrow, wide.output)


def test_a_state_of_other_parameters_is_refused(wide):
    model = load(wide.output)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scale_optimizer(optimizer, model, wide.output)
    state = optimizer.state_dict()
    state["param_groups"] = [
        {**group, "param_names": [f"x.{n}" for n in group["param_names"]]} for group in state["param_groups"]
    ]
    with pytest.raises(CheckpointError, match="have different parameters"):
        optimizer.load_state_dict(state)
