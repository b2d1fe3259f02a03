"""Muon as it is used: for hidden matrices, beside AdamW for all other parameters."""

import pytest
import torch
from safetensors.torch import save_file

from helpers import build, randomize
from mupscale_cli.errors import PlanError
from mupscale_cli.optimizers.exact.matrices import ExactMuon
from mupscale_cli.optimizers.multipliers import ScaledTensor, tensor_multipliers
from mupscale_cli.optimizers.order import names_by_order
from mupscale_cli.optimizers.rules.matrices import muon_shape_factor
from mupscale_cli.optimizers.rules.table import OPTIMIZERS
from mupscale_cli.optimizers.torch_groups import hidden_matrices, param_groups
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

NET = (
    "from torch import nn\n"
    "def build(config):\n"
    "    sizes = [config['shapes'][f'{i}.weight'] for i in (0, 2, 4)]\n"
    "    layers = [nn.Linear(columns, rows) for rows, columns in sizes]\n"
    "    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])\n"
)


def test_one_file_of_muon_and_adamw_trains_alike(tmp_path):
    """The groups of KellerJordan's MuonWithAuxAdam: each has the settings of its own optimizer, and `use_muon`."""
    (tmp_path / "net.py").write_text(NET)
    layers = [torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)]
    model = randomize(torch.nn.Sequential(*layers).double())
    named = dict(model.named_parameters())
    hidden = ["2.weight"]
    others = [name for name in named if name not in hidden]
    muon = ExactMuon([named[name] for name in hidden], lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW([named[name] for name in others], lr=3e-3, weight_decay=0.1, eps=1e-6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        model(torch.randn(16, 5, generator=generator, dtype=torch.float64)).square().mean().backward()
        for optimizer in (muon, adamw):
            optimizer.step()
        model.zero_grad()
    numbers = {name: number for number, name in enumerate((*hidden, *others))}
    pairs = [(muon, name) for name in hidden] + [(adamw, name) for name in others]
    states = {numbers[name]: dict(optimizer.state[named[name]]) for optimizer, name in pairs}
    for number in list(numbers.values())[1:]:
        states[number]["step"] = int(states[number]["step"])  # as Jordan's class counts
    groups = [
        {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1, "use_muon": True, "param_names": hidden},
        {"lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1, "use_muon": False, "param_names": others},
    ]
    groups = [{**group, "params": [numbers[name] for name in group["param_names"]]} for group in groups]
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    torch.save({"state": states, "param_groups": groups}, tmp_path / "net.optimizer.pt")
    widened = widen(tmp_path / "net.safetensors", tmp_path / "wide.safetensors", 3, verify=False)
    assert widened.record["optimizer_state"]["kinds"] == ["muon", "adamw"]
    found = verify(tmp_path / "wide.safetensors", dtype="float64", steps=8, model=f"{tmp_path / 'net.py'}:build")
    assert found.training.agrees, found.training
    assert found.training.max_rel < 1e-12
    assert found.training.optimizer.startswith("muon and adamw")


def test_groups_without_names_are_named_by_shapes():
    """Its class sorts matrices by size, so numbers do not follow the model's order."""
    model = build("Llama-untied")
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    hidden = [name for name in shapes if "layers" in name and len(shapes[name]) == 2]
    hidden = sorted(hidden, key=shapes.__getitem__, reverse=True)
    others = [name for name in shapes if name not in hidden]
    order = [*others, *hidden]
    groups = [({}, list(range(len(others)))), ({}, list(range(len(others), len(order))))]
    states = {number: {"momentum_buffer": torch.zeros(shapes[name])} for number, name in enumerate(order)}
    assert names_by_order(config, groups, states) == dict(enumerate(order))


def test_groups_are_those_that_torch_accepts(saved, tmp_path):
    import transformers

    widen(saved("Llama-untied"), tmp_path / "wide", 2, verify=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    muon = torch.optim.Muon(param_groups(model, tmp_path / "wide", lr=1e-3, optimizer="muon"))
    adamw = torch.optim.AdamW(param_groups(model, tmp_path / "wide", lr=1e-3, beside="muon"))
    by_muon, by_adamw = ({n for g in o.param_groups for n in g["param_names"]} for o in (muon, adamw))
    assert by_muon | by_adamw == {name for name, _ in model.named_parameters()}
    assert not by_muon & by_adamw
    assert by_adamw == {n for n, p in model.named_parameters() if p.dim() == 1 or "embed" in n or "lm_head" in n}


@pytest.mark.parametrize("names_its_readout", [True, False])
def test_a_hidden_matrix_may_have_as_many_rows_as_the_vocabulary(names_its_readout):
    """Only a model that does not name its readout leaves such a matrix to AdamW: it may be the readout."""
    net = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(12, 4), "up": torch.nn.Linear(4, 12), "head": torch.nn.Linear(12, 12)}
    )
    if names_its_readout:
        net.get_output_embeddings = lambda: net["head"]
    assert hidden_matrices(net) == ({"up.weight"} if names_its_readout else set())


@pytest.mark.parametrize(
    ("mode", "factor"),
    [(None, 2), ("original", 2), ("match_rms_adamw", 0.2 * 8**0.5), ("unit_rms_norm", 2), ("spectral", 8**0.5)],
)
def test_modes_of_the_learning_rate(mode, factor):
    assert muon_shape_factor((8, 2), {"adjust_lr_fn": mode}) == pytest.approx(factor)
    with pytest.raises(PlanError, match="unknown `adjust_lr_fn` value `spectrum`"):
        muon_shape_factor((8, 2), {"adjust_lr_fn": "spectrum"})


@pytest.mark.parametrize("mode", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_newton_schulz_in_bfloat16_agrees_to_two_percent(mode, factor):
    """The figure of the page `optimizers`: ten steps of torch's class, whose iteration amplifies rounding."""
    torch.manual_seed(0)
    sizes, copies = ((20, 48), (48, 32), (32, 5)), ((factor, 1), (factor, factor), (1, factor))
    narrow = [torch.randn(rows, columns, dtype=torch.float64) / columns**0.5 for columns, rows in sizes]

    def widened(index, matrix):
        rows, columns = copies[index]
        return matrix.repeat_interleave(rows, 0).repeat_interleave(columns, 1) / columns

    wide = [widened(index, matrix) for index, matrix in enumerate(narrow)]
    inputs, target = torch.randn(64, 20, dtype=torch.float64), torch.randn(64, 5, dtype=torch.float64)
    trained = []
    for matrices in (narrow, wide):
        parameters = [torch.nn.Parameter(matrix.clone()) for matrix in matrices]
        tensors = [
            ScaledTensor(str(i), ((1 / k_in, k_out * k_in),), tuple(old.shape), tuple(p.shape))
            for i, (p, old, (k_out, k_in)) in enumerate(zip(parameters, narrow, copies, strict=True))
        ]
        settings = {"adjust_lr_fn": mode}
        by = [tensor_multipliers(tensor, OPTIMIZERS["muon"], True, settings) for tensor in tensors]
        rates = [0.02 * (1 if matrices is narrow else each.lr) for each in by]
        groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, rates, strict=True)]
        optimizer = torch.optim.Muon(groups, weight_decay=0, adjust_lr_fn=mode)
        for _ in range(10):
            first, second, third = parameters
            loss = ((inputs @ first.T).tanh() @ second.T).tanh() @ third.T - target
            optimizer.zero_grad()
            loss.square().mean().backward()
            optimizer.step()
        trained.append([p.detach() for p in parameters])
    errors = []
    for index, (before, after) in enumerate(zip(*trained, strict=True)):
        planned = widened(index, before)
        errors.append(float((after - planned).norm() / planned.norm()))
    least = 1e-4 if factor == 3 else 0  # powers of 2 scale bfloat16 exactly; the order of sums may not
    assert least <= max(errors) < 0.02, errors
