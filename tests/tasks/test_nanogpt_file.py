"""nanoGPT's ckpt.pt: weights, state, sizes and a tied readout in one file, widened in kind."""

import pytest
import torch

from cli_runner import run
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen

ARGS = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 4, "bias": True, "vocab_size": 12, "dropout": 0.0}


def shapes():
    """Return the shape of each parameter in the order of the model; the readout is the embedding."""
    embed, block = ARGS["n_embd"], "transformer.h.0."
    linear = {"attn.c_attn": (3 * embed, embed), "attn.c_proj": (embed, embed)}
    linear |= {"mlp.c_fc": (4 * embed, embed), "mlp.c_proj": (embed, 4 * embed)}
    made = {"transformer.wte.weight": (12, embed), "transformer.wpe.weight": (4, embed)}
    for norm, layers in (("ln_1", ("attn.c_attn", "attn.c_proj")), ("ln_2", ("mlp.c_fc", "mlp.c_proj"))):
        made |= {f"{block}{norm}.weight": (embed,), f"{block}{norm}.bias": (embed,)}
        for layer in layers:
            made |= {f"{block}{layer}.weight": linear[layer], f"{block}{layer}.bias": linear[layer][:1]}
    return {**made, "transformer.ln_f.weight": (embed,), "transformer.ln_f.bias": (embed,)}


@pytest.fixture
def source(tmp_path):
    """A function that saves a checkpoint as train.py does, and returns its folder."""

    def save(prefix=""):
        generator = torch.Generator().manual_seed(0)
        made = {name: torch.randn(shape, generator=generator) for name, shape in shapes().items()}
        groups = [[n for n, v in made.items() if v.dim() > 1], [n for n, v in made.items() if v.dim() < 2]]
        model = {f"{prefix}{name}": value for name, value in made.items()}
        model[f"{prefix}lm_head.weight"] = made["transformer.wte.weight"]
        settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "decoupled_weight_decay": True}
        numbers = [list(range(len(groups[0]))), list(range(len(groups[0]), len(made)))]
        state = {
            number: {"step": torch.tensor(3.0), "exp_avg": made[name] / 7, "exp_avg_sq": made[name] ** 2}
            for number, name in enumerate((*groups[0], *groups[1]))
        }
        decays = zip((0.1, 0.0), numbers, strict=True)
        optimizer = {"state": state, "param_groups": [{**settings, "weight_decay": d, "params": p} for d, p in decays]}
        folder = tmp_path / "out"
        folder.mkdir()
        content = {"model": model, "optimizer": optimizer, "model_args": ARGS, "iter_num": 3}
        torch.save({**content, "best_val_loss": torch.tensor(2.0), "config": {"n_embd": 8}}, folder / "ckpt.pt")
        return folder

    return save


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_everything_is_widened_in_the_same_file(prefix, source, tmp_path):
    made = widen(source(prefix), tmp_path / "wide", 2, verify=False)
    content = torch.load(tmp_path / "wide" / "ckpt.pt", weights_only=True)
    assert content["model_args"] == {**ARGS, "n_head": 4, "n_embd": 16}
    assert (content["iter_num"], content["config"]) == (3, {"n_embd": 8})  # the record of the narrow run
    weights = content["model"]
    assert weights[f"{prefix}lm_head.weight"].data_ptr() == weights[f"{prefix}transformer.wte.weight"].data_ptr()
    assert made.plan.recipe.name == "nanogpt"

    rates = {}
    for group in content["optimizer"]["param_groups"]:
        for number, name in zip(group["params"], group["param_names"], strict=True):
            plain = name.removeprefix("_orig_mod.")
            rates[plain] = group["lr"]
            assert group["lr"] == 1e-3 * group["lr_factor"]
            assert content["optimizer"]["state"][number]["exp_avg"].shape == weights[f"{prefix}{plain}"].shape
    assert rates.keys() == shapes().keys()
    assert rates["transformer.wte.weight"] == 1e-3
    assert rates["transformer.h.0.mlp.c_fc.weight"] == rates["transformer.ln_f.weight"] == 5e-4


def test_the_next_lines_are_those_of_train_py(source, tmp_path):
    made = run("widen", str(source()), "-o", str(tmp_path / "wide"), "-f", "2", "--no-verify")
    assert made.code == 0, made.err
    assert f"python train.py --init_from=resume --out_dir={tmp_path / 'wide'}" in made.out
    assert made.out.count("\n  - ") == made.out.count("\n  + ") == 3


def test_the_changed_lines_still_serve_narrow_runs(source, tmp_path):
    folder = source()
    made = widen(folder, tmp_path / "wide", 2, verify=False)
    lines = [line[2:] for line in made.into_trainer if line.startswith("+ ")]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=1e-3)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    checkpoint = {"optimizer": optimizer.state_dict()}
    known = {"checkpoint": checkpoint, "optimizer": optimizer, "model": None, "out_dir": str(folder), "lr": 1e-4}
    for line in lines:
        exec(line, known | {"param_group": optimizer.param_groups[0], "grad_clip": 1.0})  # noqa: S102 (our own lines)
    assert optimizer.param_groups[0]["lr"] == 1e-4
    assert optimizer.param_groups[0]["params"][0].grad.norm() == pytest.approx(1.0, abs=1e-5)


def test_a_single_file_is_resumed_in_its_folder(source, tmp_path):
    (tmp_path / "wide").mkdir()
    file = tmp_path / "wide" / "ckpt.pt"
    made = widen(source() / "ckpt.pt", file, 2, verify=False)
    assert f"--out_dir={tmp_path / 'wide'}  #" in made.into_trainer[0]
    assert f"scale_optimizer(optimizer, model, '{file}')" in made.into_trainer[2]
    assert find_source(file).checkpoint.record is not None  # which that line reads


def test_nothing_resumes_without_the_state(source, tmp_path):
    assert widen(source(), tmp_path / "wide", 2, optimizer="none", verify=False).into_trainer == ()


def test_a_file_of_an_older_torch_needs_no_option(source, tmp_path):
    """Its groups do not say that the decay is decoupled, but nanoGPT trains with AdamW."""
    folder = source()
    content = torch.load(folder / "ckpt.pt", weights_only=True)
    for group in content["optimizer"]["param_groups"]:
        del group["decoupled_weight_decay"]
    torch.save(content, folder / "ckpt.pt")
    made = widen(folder, tmp_path / "wide", 2, verify=False)
    assert made.record["optimizer_state"]["kinds"] == ["adamw"]
    decays = {g["weight_decay"] / g["weight_decay_factor"] for g in made_groups(tmp_path / "wide")}
    assert decays == {0.1, 0.0}
    named = widen(folder, tmp_path / "named", 2, optimizer_kind="adam", verify=False)
    assert named.record["optimizer_state"]["kinds"] == ["adam"]


def made_groups(folder):
    return torch.load(folder / "ckpt.pt", weights_only=True)["optimizer"]["param_groups"]
