"""A model that grows in memory computes and trains as before, and is what widening its checkpoint gives."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from memory_runs import Run, difference, follows, tokens_loss, vectors_loss
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR

from helpers import build, mlp_tensors
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.exact.matrices import ExactMuon
from mupscale_cli.plan import Size
from mupscale_cli.tasks.growing.grow import grow
from mupscale_cli.tasks.widen import widen

BEFORE = 3  # steps, so that no state is zero
SIZES = (5, 8, 6, 3)


def mlp(config=None):
    """Build the net of `mlp_tensors`, or one of other sizes."""
    sizes = SIZES if config is None else [5, *(config["shapes"][f"{i}.weight"][0] for i in (0, 2, 4))]
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def adamw(model):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=3e-3, eps=1e-6, weight_decay=0.1)]


def sgd(model):
    return [torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)]


def muon(model):
    names = [name for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name]
    matrices = [p for name, p in model.named_parameters() if name in names]
    others = [p for name, p in model.named_parameters() if name not in names]
    return [ExactMuon([{"params": matrices, "ns_steps": 5}], lr=3e-3), torch.optim.AdamW(others, lr=3e-3)]


def decay(optimizers):
    return [LambdaLR(optimizer, lambda step: 1 / (1 + step / 10)) for optimizer in optimizers]


def started(case, optimizers=adamw, *, schedulers=decay, **changes):
    """Return a run of some steps; `mlp` is a module of the user's own."""
    if case == "mlp":
        model = mlp().double()
        model.load_state_dict(mlp_tensors())
    else:
        model = build(case, torch.float64, **changes)
    made = optimizers(model)
    run = Run(model, made, vectors_loss if case == "mlp" else tokens_loss, schedulers(made))
    run.train(BEFORE)
    return run


def grow_run(run, **options):
    own = {"recipe": "mlp", "build": mlp} if run.loss is vectors_loss else {}
    result = grow(run.model, run.optimizers, scheduler=run.schedulers, **own, **options)
    return result, run.grown(result)


# Training -----------------------------------------------------------------------------------------


TIED, UNTIED, GPT2, MLP = (
    ("Llama-tied", {"factor": 3}),
    ("Llama-untied", {"axes": {"embed": 2, "g": 2, "ffn": 3}}),
    ("GPT2-tied", {"factor": 2}),
    ("mlp", {"factor": 3}),
)
DEFAULT = {(UNTIED[0], adamw), (GPT2[0], muon), (MLP[0], adamw), (MLP[0], sgd)}


@pytest.mark.parametrize(
    ("case", "options", "optimizers"),
    [
        pytest.param(case, options, optimizers, marks=[] if (case, optimizers) in DEFAULT else pytest.mark.slow)
        for case, options in (TIED, UNTIED, GPT2, MLP)
        for optimizers in (adamw, sgd, muon)
    ],
)
def test_losses_go_on(case, options, optimizers):
    narrow = started(case, optimizers)
    result, wide = grow_run(narrow, **options)
    error, allowed = follows(narrow, wide, result.plan)
    assert error <= allowed < 1e-9
    assert not result.notes


def test_losses_go_on_with_fresh_units_at_zero():
    narrow = started("Llama-untied")
    result, wide = grow_run(narrow, factor=1.5, fresh="zero")
    error, allowed = follows(narrow, wide, result.plan)
    assert error <= allowed < 1e-9


def test_losses_go_on_in_a_deeper_model_while_new_blocks_are_frozen():
    narrow = started("Llama-tied")
    result, wide = grow_run(narrow, layers=5, factor=2)
    new = {tensor.target.name for tensor in result.plan.tensors if tensor.is_new}
    for name, parameter in result.model.named_parameters():
        parameter.requires_grad_(name not in new)
    assert new
    assert all(
        "step" not in wide.optimizers[0].state[p] or p.requires_grad or not wide.optimizers[0].state[p]["step"]
        for p in result.model.parameters()
    )
    error, allowed = follows(narrow, wide, result.plan)
    assert error <= allowed < 1e-9


@pytest.mark.parametrize("options", [{"factor": 1.5}, {"factor": 2, "noise": 0.3, "noise_mode": "preserving"}])
def test_the_function_stays_where_new_units_learn(options):
    narrow = started("Llama-untied")
    result, wide = grow_run(narrow, **options)
    error, allowed = follows(narrow, wide, result.plan, steps=20)
    assert difference(narrow.losses[-20:][:1], wide.losses[:1]) < 1e-12
    assert error > allowed, "the new units learn nothing"


# Bytes --------------------------------------------------------------------------------------------


def on_disk(run, folder, **options):
    """Widen the checkpoint of a run; return the wide tensors, and the wide state of its optimizer."""
    run.model.save_pretrained(folder / "narrow")
    (optimizer,) = run.optimizers
    torch.save(optimizer.state_dict(), folder / "narrow" / "optimizer.pt")
    output = widen(folder / "narrow", folder / "wide", verify=False, **options).output
    return load_file(output / "model.safetensors"), torch.load(output / "optimizer.pt")


def same_bits(a, b):
    return (
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a[None].view(torch.uint8), b[None].view(torch.uint8))
    )


def trainer_groups(model):
    """Return AdamW with the groups of the Trainer, whose order names the parameters of a saved state."""
    from transformers import Trainer

    names = set(Trainer.get_decay_parameter_names(None, model))
    groups = [
        {"params": [p for name, p in model.named_parameters() if (name in names) == is_decayed], "weight_decay": decay}
        for is_decayed, decay in ((True, 0.1), (False, 0.0))
    ]
    return [torch.optim.AdamW(groups, lr=3e-3)]


@pytest.mark.parametrize("policy", ["copy", "reset-new"])
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("Llama-tied", {"factor": 3, "noise": 0.3, "seed": 7}),
        ("Llama-untied", {"factor": 1.5, "noise": 0.3, "noise_mode": "preserving"}),
        ("Llama-untied", {"axes": {"hidden_size": Size(100), "ffn": 2}, "layers": 3, "spread": "balanced"}),
        ("GPT2-tied", {"factor": 3, "layers": 5}),
    ],
)
def test_every_tensor_has_the_bytes_of_a_widened_checkpoint(case, options, policy, tmp_path):
    run = started(case, trainer_groups, schedulers=lambda _: [])
    run.model.to(torch.bfloat16)
    result, _ = grow_run(run, optimizer_policy=policy, **options)
    tensors, state = on_disk(run, tmp_path, optimizer_policy=policy, **options)
    grown = result.model.state_dict()
    assert grown.keys() - tensors.keys() <= {"lm_head.weight"}
    assert all(same_bits(tensor, grown[name]) for name, tensor in tensors.items())
    (optimizer,) = result.optimizer
    assert optimizer.state_dict()["param_groups"] == state["param_groups"]
    in_memory = optimizer.state_dict()["state"]
    assert in_memory.keys() == state["state"].keys()
    for number, entries in state["state"].items():
        assert entries.keys() == in_memory[number].keys()
        assert all(same_bits(value, in_memory[number][key]) for key, value in entries.items())


def test_parameters_that_are_saved_in_another_form(tmp_path):
    """Experts are one tensor in memory and several in a checkpoint."""
    from transformers import AutoModelForCausalLM

    model = build("Mixtral-tied")
    model.save_pretrained(tmp_path / "narrow")
    output = widen(tmp_path / "narrow", tmp_path / "wide", factor=3, verify=False).output
    loaded, grown = AutoModelForCausalLM.from_pretrained(output).state_dict(), grow(model, factor=3).model.state_dict()
    assert loaded.keys() == grown.keys()
    assert all(same_bits(value, grown[name]) for name, value in loaded.items())
    with pytest.raises(
        PlanError, match=r"`model.layers.0.mlp.experts.* is saved in another form .* noise would differ"
    ):
        grow(model, factor=2, noise=0.1)


# Everything else ----------------------------------------------------------------------------------


@dataclass
class NetConfig:
    """The sizes of a `Net`."""

    width: int = 6
    hidden: int = 10


class Net(nn.Module):
    """A module whose config is a dataclass, with a norm that has statistics, and a table that is computed."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.up = nn.Linear(5, config.width)
        self.norm = nn.BatchNorm1d(config.width)
        self.down = nn.Linear(config.width, 3, bias=False)
        self.register_buffer("table", torch.arange(config.width, dtype=torch.float32), persistent=False)

    def forward(self, inputs):
        return self.down(self.norm(self.up(inputs)))


RECIPE = """
axes:
  embed: {size: width}
widen: [embed]
config: {width: embed}
tensors:
  up.weight: "embed, ."
  up.bias: embed
  "norm.{weight,bias,running_mean,running_var}": embed
  norm.num_batches_tracked: keep
  down.weight: "., /embed"
"""


@pytest.fixture
def net_recipe(tmp_path):
    """The recipe of `Net`."""
    file = tmp_path / "net.yaml"
    file.write_text(RECIPE)
    return file


def test_a_module_of_ones_own_with_a_dataclass(net_recipe):
    net = Net(NetConfig()).to(torch.bfloat16)
    net.norm.eval()
    net.down.weight.requires_grad_(False)
    net(torch.randn(4, 5, dtype=torch.bfloat16))
    rng = torch.get_rng_state()
    wide = grow(net, factor=2, recipe=net_recipe).model
    assert torch.equal(rng, torch.get_rng_state()), "growing draws random numbers"
    assert wide.config == NetConfig(width=12)
    assert isinstance(wide, Net)
    assert {value.dtype for name, value in wide.state_dict().items() if "num" not in name} == {torch.bfloat16}
    assert wide.table.dtype == torch.bfloat16
    assert len(wide.table) == 12
    assert [module.training for module in wide.modules()] == [module.training for module in net.modules()]
    assert [p.requires_grad for p in wide.parameters()] == [p.requires_grad for p in net.parameters()]
    assert wide.norm.running_mean.tolist() == net.norm.running_mean.repeat_interleave(2).tolist()


def test_tied_weights_stay_tied():
    model = build("Llama-tied")
    wide = grow(model, factor=2).model
    assert wide.lm_head.weight is wide.model.embed_tokens.weight
    untied = grow(model, factor=2, tie="untie").model
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    with pytest.raises(PlanError, match="shared moments"):
        grow(model, adamw(model), factor=2, tie="untie")


def test_modes_follow_blocks_to_their_new_places():
    model = build("Llama-tied").train()
    model.model.layers[1].mlp.eval()
    wide = grow(model, layers=4, layers_at="start").model
    assert [layer.mlp.training for layer in wide.model.layers] == [True, True, True, False]
    assert [layer.mlp.act_fn.training for layer in wide.model.layers] == [True, True, True, False]


@pytest.mark.parametrize(
    ("wrap", "written"),
    [
        (nn.DataParallel, "DataParallel"),
        pytest.param(lambda model: torch.compile(model, backend="eager"), "torch.compile", marks=pytest.mark.slow),
    ],
)
def test_wrappers_are_taken_off_and_hooks_are_named(wrap, written):
    model = build("Llama-tied")
    model.model.layers[0].register_forward_hook(lambda *_: None)
    plain, result = grow(model, factor=2), grow(wrap(model), factor=2)
    assert type(result.model) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), result.model.parameters(), strict=True))
    assert result.notes == (
        f"`{written}` was taken off; wrap the wide one again",
        "hooks of `model.layers.0` are not carried; register them again",
    )


def test_what_cannot_be_grown_is_refused():
    model = build("Llama-tied")
    other = torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1)
    (optimizer,) = adamw(model)

    def refused(match, *arguments, **options):
        before = [p.clone() for p in model.parameters()]
        with pytest.raises(PlanError, match=match):
            grow(*arguments, **{"factor": 2, **options})
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    refused(r"parameter of shape \(3,\) that is not one of the model's", model, other)
    refused("averages another model", torch.optim.swa_utils.AveragedModel(model))
    refused("on the device `meta`", build("Llama-tied").to("meta"))
    refused("LambdaLR drives another optimizer", model, optimizer, scheduler=LambdaLR(other, float))
    cosine = CosineAnnealingLR(optimizer, 10, eta_min=1e-4)
    refused("`eta_min` is 0.0001 for every group", model, optimizer, scheduler=cosine)
    refused("cannot build the wide Sequential.*no config", mlp(), recipe="mlp")
    refused("has the shape", mlp(), recipe="mlp", build=lambda _: mlp())
    refused("has no `4.weight`", mlp(), recipe="mlp", build=lambda config: mlp(config)[:4])
    refused("`build` returned dict", mlp(), recipe="mlp", build=dict)
    model.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"not finite|NaN"):
        grow(model, factor=2)
    assert grow(model, factor=2, allow_nonfinite=True).model.lm_head.weight.isnan().sum() == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        lambda optimizer: OneCycleLR(optimizer, max_lr=[1e-2, 1e-3], total_steps=40),
        lambda optimizer: SequentialLR(
            optimizer, [LinearLR(optimizer, 0.1), CosineAnnealingLR(optimizer, 20)], milestones=[2, 5][:1]
        ),
        lambda optimizer: torch.optim.lr_scheduler.CyclicLR(optimizer, 1e-4, 1e-2, 4),
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=[1e-4, 1e-5]),
    ],
)
def test_schedulers_go_on(make):
    model = build("Llama-tied")
    optimizer = torch.optim.SGD(adamw(model)[0].param_groups, lr=1e-3, momentum=0.9)
    scheduler = make(optimizer)
    result = grow(model, optimizer, factor=2, scheduler=scheduler)
    first = {name: group for group in result.optimizer.param_groups for name in group["param_names"]}
    names = dict(model.named_parameters())
    factors = {name: first[name]["lr"] / _rate(optimizer, parameter) for name, parameter in names.items()}
    assert len(set(factors.values())) > 1
    for step in range(12):
        for one, driven in ((optimizer, scheduler), (result.optimizer, result.scheduler)):
            one.step()
            driven.step(*([1.0] if "Plateau" in type(driven).__name__ else ()))
        for name, parameter in names.items():
            assert _rate(result.optimizer, result.model.get_parameter(name)) == pytest.approx(
                factors[name] * _rate(optimizer, parameter), rel=1e-12
            ), step


def _rate(optimizer, parameter):
    return next(g["lr"] for g in optimizer.param_groups if any(parameter is p for p in g["params"]))


@pytest.mark.parametrize(
    "options",
    [
        {"factor": 1.5},
        {"factor": 2, "noise": 0.1, "noise_scale": "rms"},
        {"factor": 2, "noise": 0.1, "noise_scale": "elementwise", "noise_mode": "preserving"},
        {"factor": 3, "method": "net2net"},
        {"factor": 2, "method": "warmstart"},
    ],
)
def test_the_narrow_model_stays_as_it_is(options):
    """In float32, whose elements need no conversion, so what is measured on them could write to them."""
    narrow = build("Llama-tied", torch.float32)
    before = {name: value.clone() for name, value in narrow.state_dict().items()}
    grow(narrow, **options)
    assert all(torch.equal(value, before[name]) for name, value in narrow.state_dict().items())
