"""The wide model, with its carried state, takes the same optimizer steps as the narrow one."""

import pytest
import torch
from safetensors.torch import save_file

from helpers import MODELS, randomize
from mupscale_cli.errors import VerifyError
from mupscale_cli.optimizers.rules import OPTIMIZERS as RULES
from mupscale_cli.optimizers.rules import Powers
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from training import OPTIMIZERS, make, save_training

STEPS, SLOW_STEPS = 8, 20  # a wrong rule shows after two
# Phi-3 has one tensor for queries, keys and values. If g is widened, their multiplicities differ, and eps is inexact.
AXES = {
    "Phi3": {"embed": 2, "kv": 3, "ffn": 4},
    "Qwen3": {"embed": 2, "kv": 3, "g": 2, "ffn": 4},
    "GPT2": {"h": 3, "embed": 3, "ffn": 2},
}
# The parts of these fused projections always have different coefficients or multiplicities.
FUSED = ("Bloom", "Mpt", "GPTBigCode-multi", "Falcon-multi")
HEADLESS = ("ViT-pooler", "T5-encoder", "CLIPText", "CLIPVision")
TRAINED = [case for case in MODELS if not case.startswith((*FUSED, *HEADLESS))]
# One case per kind of architecture: dense, offset gains, mixtures of experts in four forms, latent attention, encoders,
# encoder-decoders, convolutions with and without BatchNorm, state spaces and hybrids, images with text.
KINDS = [
    "Llama-tied",
    "Qwen3-tied",
    "Phi3-untied",
    "GPT2-tied",
    "Gemma3-tied",
    "Nemotron-untied",
    "Cohere-tied",
    "Mixtral-tied",
    "Qwen2Moe-untied",
    "GptOss-tied",
    "GraniteMoeShared-tied",
    "DeepseekV3-untied",
    "GPTNeoX-tied",
    "OPT-projected",
    "StableLm-parallel",
    "Bert-tied",
    "Electra-tied",
    "ModernBert-tied",
    "T5-gated",
    "Bart-tied",
    "Whisper-tied",
    "ViT-classifier",
    "Dinov2-gated",
    "Swin-classifier",
    "ResNet-basic",
    "ResNet-bottleneck",
    "Mamba-tied",
    "Lfm2-tied",
    "CLIP-both",
    "Llava-clip",
]
# Their reference implementations scan, or convolve in float64.
SLOW_KINDS = ["Mamba2-untied", "FalconH1-tied", "ConvNextV2-classifier"]
ALL_KINDS = [*KINDS, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW_KINDS)]
MIXED = AXES["Qwen3"]
NO_MATRICES = ("ResNet", "ConvNext")


def train(tmp_path, case, optimizer, factor=None, axes=None, steps=STEPS):
    source = save_training(tmp_path / "narrow", case, optimizer)
    widen(source, tmp_path / "wide", factor, axes, verify=False)
    return verify(tmp_path / "wide", dtype="float64", steps=steps).training


def check(training, steps=STEPS):
    assert training.agrees, training
    assert training.carried
    assert training.max_rel < 1e-10
    assert len(training.losses) == steps
    assert training.losses[0][0] != training.losses[-1][0]


@pytest.fixture
def steps(request):
    """The number of optimizer steps: slow tests take more."""
    return SLOW_STEPS if request.node.get_closest_marker("slow") else STEPS


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer(optimizer, tmp_path):
    check(train(tmp_path, "Qwen3-tied", optimizer, axes=MIXED))


@pytest.mark.parametrize("case", ALL_KINDS)
def test_every_kind_of_architecture(case, steps, tmp_path):
    axes = AXES.get(case.partition("-")[0])
    check(train(tmp_path, case, "adamw", None if axes else 3, axes, steps), steps)


@pytest.mark.parametrize("case", ["Mixtral-tied", "Qwen2Moe-untied", "GptOss-tied", "GraniteMoe-tied"])
def test_copied_experts_train_alike(case, tmp_path):
    """The router has to choose the same experts, with all of their copies."""
    check(train(tmp_path, case, "adamw", axes={"experts": 2, "embed": 2}))


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in TRAINED if case not in (*KINDS, *SLOW_KINDS)])
def test_every_recipe(case, steps, tmp_path):
    check(train(tmp_path, case, "adamw", 2, steps=steps), steps)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", [*KINDS, *SLOW_KINDS])
def test_every_kind_with_every_optimizer(case, optimizer, factor, steps, tmp_path):
    if optimizer == "muon" and case.startswith(NO_MATRICES):
        pytest.skip("Muon trains only matrices, and these are convolutions or stacks of matrices")
    check(train(tmp_path, case, optimizer, factor, steps=steps), steps)


# Mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "factor"), [("lr", 1.01), ("eps", 1.5), ("weight_decay", 1.1), ("lr", 3.0)])
def test_a_wrong_hyperparameter_is_found(key, factor, tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw")
    widen(source, tmp_path / "wide", 3, verify=False)
    file = tmp_path / "wide" / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    wrong = next(group for group in state["param_groups"] if any("q_proj" in name for name in group["param_names"]))
    wrong[key] *= factor
    torch.save(state, file)
    found = verify(tmp_path / "wide", dtype="float64", steps=STEPS).training
    assert not found.agrees
    assert found.stored.units <= 1
    assert found.first_difference is None or found.first_difference.what.split(" ")[0] in wrong["param_names"]


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_a_wrong_state_is_found_and_named(key, tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw", dtype=torch.float32)
    widen(source, tmp_path / "wide", 3, verify=False)
    file = tmp_path / "wide" / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    names = [name for group in state["param_groups"] for name in group["param_names"]]
    number = names.index("model.layers.1.mlp.up_proj.weight")
    state["state"][number][key] *= 1.001
    torch.save(state, file)
    found = verify(tmp_path / "wide", dtype="float64", steps=2).training
    assert not found.agrees
    assert found.stored.what == f"{key} of model.layers.1.mlp.up_proj.weight"


def test_a_wrong_rule_is_found(tmp_path, monkeypatch):
    """Multiply Adam's learning rate by c^2 instead of c."""
    import dataclasses

    monkeypatch.setitem(RULES, "adamw", dataclasses.replace(RULES["adamw"], lr=Powers(c=2)))
    found = train(tmp_path, "Llama-tied", "adamw", 2)
    assert not found.agrees
    assert found.first_difference.what.endswith("(step 2)")


def test_a_missing_state_is_named(tmp_path):
    source = save_training(tmp_path / "narrow", "Llama-tied", "adamw")
    widen(source, tmp_path / "wide", 2, verify=False)
    file = tmp_path / "wide" / "optimizer.pt"
    state = torch.load(file, weights_only=True)
    del state["state"][3]
    torch.save(state, file)
    with pytest.raises(VerifyError, match=r"carried state of `model\."):
        verify(tmp_path / "wide", dtype="float64", steps=2)


def test_without_a_state_both_start_from_zero(saved, tmp_path):
    widen(saved("Qwen2-tied", dtype=torch.bfloat16), tmp_path / "wide", 3, verify=False)
    found = verify(tmp_path / "wide", dtype="float64", steps=5).training
    assert found.agrees
    assert not found.carried
    # Stored bfloat16 weights are compared, but training starts from the unrounded values.
    assert 0 < found.stored.units <= 1


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_stack_of_linear_layers(optimizer, factor, tmp_path):
    """A user-defined model without a config; the state is matched by the names of the parameters."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(config):\n"
        "    sizes = [config['shapes'][f'{i}.weight'] for i in (0, 2, 4)]\n"
        "    layers = [nn.Linear(columns, rows) for rows, columns in sizes]\n"
        "    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])\n"
    )
    generator = torch.Generator().manual_seed(0)
    layers = [torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)]
    model = randomize(torch.nn.Sequential(*layers).double())
    made = make(optimizer, list(model.named_parameters()), [])
    for _ in range(3):
        model(torch.randn(16, 5, generator=generator, dtype=torch.float64)).square().mean().backward()
        made.step()
        model.zero_grad()
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    torch.save(made.state_dict(), tmp_path / "net.optimizer.pt")
    widen(tmp_path / "net.safetensors", tmp_path / "wide.safetensors", factor, verify=False)
    model = f"{tmp_path / 'net.py'}:build"
    check(verify(tmp_path / "wide.safetensors", dtype="float64", steps=STEPS, model=model).training)
