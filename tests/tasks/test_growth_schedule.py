"""Progressive growth: when it happens, and that several growths are one."""

import pytest
import torch
from memory_runs import Run, follows, tokens_loss

from helpers import build
from mupscale_cli import clip_grad_norm_
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.growing.grow import grow
from mupscale_cli.tasks.growing.schedule import GrowthSchedule


def test_times_are_steps_or_fractions():
    schedule = GrowthSchedule({0: 2, 0.25: {"axes": {"ffn": 2}, "seed": 7}, 900: 1.5}, {"noise": 0.1, "seed": 3})
    assert schedule.over(1000) == {
        0: {"noise": 0.1, "seed": 3, "factor": 2},
        250: {"noise": 0.1, "seed": 7, "axes": {"ffn": 2}},
        900: {"noise": 0.1, "seed": 5, "factor": 1.5},
    }


@pytest.mark.parametrize(
    ("growths", "options", "match"),
    [
        ({0.5: 2, 30: 2}, {}, "steps 50, 30 do not follow"),
        ({0.301: 2, 0.302: 2}, {}, "steps 30, 30 do not follow"),
        ({1.5: 2}, {}, r"time of a growth is 1\.5, expected a whole step"),
        ({-1: 2}, {}, "time of a growth is -1"),
        ({"30 %": 2}, {}, "time of a growth is 30 %"),
        ({0.5: {"fctor": 2}}, {}, "unknown option `fctor`"),
        ({0.5: 2}, {"noise_mode": "free"}, "`noise_mode` has no effect without `noise`"),
        ({0.5: 100}, {}, None),
    ],
)
def test_what_is_wrong_is_said_before_the_run(growths, options, match):
    with pytest.raises(PlanError, match=match):
        schedule = GrowthSchedule(growths, options)
        schedule.over(100)
        schedule.plans(build("Llama-tied"))


def test_every_growth_is_planned_from_the_one_before():
    model = build("Llama-tied")
    first, second = GrowthSchedule({0.3: 1.5, 0.6: 2}).plans(model)
    grown = grow(grow(model, factor=1.5).model, factor=2)
    assert second.num_parameters == grown.plan.num_parameters
    assert second.num_parameters[0] == first.num_parameters[1]
    assert [t.target for t in second.tensors] == [t.target for t in grown.plan.tensors]


def started():
    model = build("Llama-tied", torch.float64)
    groups = [
        {"params": [p for p in model.parameters() if (p.dim() > 1) == is_matrix], "weight_decay": decay}
        for is_matrix, decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, eps=1e-6)
    run = Run(model, [optimizer], tokens_loss, [torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.5)])
    run.train(3)
    return run


def settings(run):
    """Return the hyperparameters of each parameter by its name."""
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    keys = ("lr", "eps", "weight_decay", "clip_weight", "initial_lr")
    groups = run.optimizers[0].param_groups
    return {names[id(p)]: [group.get(key, 1.0) for key in keys] for group in groups for p in group["params"]}


def test_losses_go_on_through_several_growths():
    narrow = started()
    run, plans = narrow.twin(), []
    for step in range(10):
        if step in (growths := GrowthSchedule({0.2: 2, 0.5: {"axes": {"ffn": 3, "g": 2}}}).over(10)):
            before = settings(run)
            result = grow(run.model, run.optimizers, scheduler=run.schedulers, **growths[step])
            plans.append(result.plan)
            run = run.grown(result)
            coefficients = {tensor.target.name: tensor.parts[0] for tensor in result.plan.tensors}
            for name, (lr, eps, decay, clip, initial) in settings(run).items():
                c, m = coefficients[name]
                old = before[name]
                assert [lr, initial] == pytest.approx([old[0] * c, old[4] * c])
                assert [eps, decay, clip] == pytest.approx([old[1] / (m * c), old[2] / c, old[3] * m * c**2])
        assert run.train(1) == pytest.approx(narrow.train(1), rel=1e-9)
    assert len(plans) == 2
    error, allowed = follows(narrow, run, plans[-1])
    assert error <= allowed


def test_growths_are_the_growth_by_their_product():
    narrow = started()
    at_once = grow(narrow.model, narrow.optimizers, scheduler=narrow.schedulers, factor=4)
    first = grow(narrow.model, narrow.optimizers, scheduler=narrow.schedulers, factor=2)
    second = grow(first.model, first.optimizer, scheduler=first.scheduler, factor=2)
    one, two = narrow.grown(at_once), narrow.grown(second)
    assert one.model.config.to_dict() == two.model.config.to_dict()
    pairs = list(zip(one.model.parameters(), two.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    for a, b in pairs:
        entries, others = one.optimizers[0].state[a], two.optimizers[0].state[b]
        assert all(torch.equal(value, others[key]) for key, value in entries.items())
    twice = settings(two)
    assert all(values == pytest.approx(twice[name]) for name, values in settings(one).items())


def test_one_call_clips_before_and_after_a_growth():
    narrow = started()
    narrow.optimizers[0].zero_grad()
    tokens_loss(narrow.model, 0).backward()
    plain = torch.nn.utils.get_total_norm([p.grad for p in narrow.model.parameters()])
    wide = narrow.grown(grow(narrow.model, narrow.optimizers, scheduler=narrow.schedulers, factor=3))
    tokens_loss(wide.model, 0).backward()
    norms = [clip_grad_norm_(run.optimizers[0], 0.1).item() for run in (narrow, wide)]
    # The model computes norms and softmax in float32.
    assert norms == pytest.approx([plain.item()] * 2, rel=16 * 2**-24)
