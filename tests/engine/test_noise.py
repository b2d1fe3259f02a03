"""Noise: its reproducibility, its size, and what it preserves."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import save_model
from mupscale_cli.engine.shards import write_shards
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.plan.perturbation import Perturbation
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.source import find_source
from mupscale_cli.tasks.widen import widen

# Reproducibility ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["free", "preserving"])
@pytest.mark.parametrize(("case", "factor", "axes"), [("Qwen3-tied", 3, {}), ("GPT2-untied", 2, {"h": 2})])
def test_noise_does_not_depend_on_blocks_and_shards(case, factor, axes, mode, saved, tmp_path):
    found = find_source(saved(case))
    contents = []
    for block, shard in ((1 << 23, 10**9), (100, 10**9), (1, 10**9), (5000, 30_000)):
        plan = plan_widening(found, factor=factor, axes=axes, noise=0.2, noise_mode=mode, max_shard_size=shard)
        folder = tmp_path / f"{block}-{shard}"
        folder.mkdir()
        write_shards(plan.shards, found.checkpoint.tensors, folder, metadata={"format": "pt"}, block_bytes=block)
        tensors = {}
        for file in folder.iterdir():
            tensors |= load_file(file)
        contents.append(tensors)
    first, *others = contents
    for other in others:
        assert other.keys() == first.keys()
        assert all(torch.equal(other[name], first[name]) for name in first)


def test_a_seed_gives_the_same_noise_and_another_seed_different_noise(saved, tmp_path):
    def widened(name, seed):
        widen(saved("Llama-untied"), tmp_path / name, 2, noise=0.1, seed=seed, verify=False)
        return load_file(tmp_path / name / "model.safetensors")["lm_head.weight"]

    assert torch.equal(widened("a", 1), widened("b", 1))
    assert not torch.equal(widened("c", 1), widened("d", 2))


# Size -----------------------------------------------------------------------------------------


def noises(source, tmp_path, factor=None, axes=None, recipe=None, method="mupscale", **settings):
    """Yield the plan's tensors with their values without noise and their noise."""
    options = {"recipe": recipe, "verify": False}
    suffix = ".safetensors" if source.is_file() else ""
    plain, noisy = tmp_path / f"plain{suffix}", tmp_path / f"noisy{suffix}"
    widen(source, plain, factor, axes, method=method, noise=0.0, **options)
    found = widen(source, noisy, factor, axes, method=method, **settings, **options)
    read = lambda path: load_file(path / "model.safetensors" if path.is_dir() else path)  # noqa: E731
    before, after = read(plain), read(noisy)
    for tensor in found.plan.tensors:
        name = tensor.target.name
        yield tensor, before[name].double(), after[name].double() - before[name].double()


def test_free_noise_has_the_requested_size(saved, tmp_path):
    """Relative to the spectral norm of matrices and the root mean square of embedding and readout; none for gains."""
    source = saved("Llama-untied", hidden_size=96, intermediate_size=128, vocab_size=200, attention_bias=True)
    kinds = set()
    for tensor, weight, noise in noises(source, tmp_path, 2, noise=0.1):
        if weight.dim() == 1:
            assert not noise.any()
        elif "embed_tokens" in tensor.target.name or "lm_head" in tensor.target.name:
            kinds.add("vector")
            assert float(noise.std() / weight.square().mean().sqrt()) == pytest.approx(0.1, rel=0.02)
        else:
            kinds.add("matrix")
            # The largest singular value of a Gaussian matrix is below its mean bound, by up to a tenth at such sizes.
            ratio = torch.linalg.matrix_norm(noise, 2) / torch.linalg.matrix_norm(weight, 2)
            assert 0.085 < ratio < 0.105
            expected = 0.1 * torch.linalg.matrix_norm(weight, 2) / sum(size**0.5 for size in weight.shape)
            assert float(noise.std() / expected) == pytest.approx(1, rel=0.03)
    assert kinds == {"vector", "matrix"}


@pytest.mark.parametrize("mode", ["free", "preserving"])
def test_rms_noise_has_the_requested_size(mode, saved, tmp_path):
    options = {"noise": 0.2, "noise_mode": mode, "noise_scale": "rms"}
    found = list(noises(saved("Llama-untied"), tmp_path, 3, **options))
    noisy = [(weight, noise) for tensor, weight, noise in found if tensor.noise is not None]
    assert noisy
    for weight, noise in noisy:
        sampling = 4 / math.sqrt(2 * noise.numel() * (2 / 3 if mode == "preserving" else 1))
        assert float(noise.std() / weight.square().mean().sqrt()) == pytest.approx(0.2, rel=sampling)


def test_fan_in_noise_is_the_reference_initialization(tmp_path):
    """The size is T / sqrt(fan_in) of the wide layer; a readout with 1/k in its weights has its noise divided too."""
    tensors = {"0.weight": torch.randn(64, 50), "2.weight": torch.randn(96, 64), "4.weight": torch.randn(30, 96)}
    save_file(tensors, tmp_path / "net.safetensors")
    options = {"noise": 0.5, "noise_scale": "fan-in"}
    found = list(noises(tmp_path / "net.safetensors", tmp_path, 2, recipe="mlp", **options))
    stds = [float(noise.square().mean().sqrt()) for _, _, noise in found]
    assert stds == pytest.approx([0.5 / 50**0.5, 0.5 / 128**0.5, 0.5 / 192**0.5 / 2], rel=0.03)
    found = list(noises(tmp_path / "net.safetensors", tmp_path / "x", 2, recipe="mlp_mup", **options))
    assert float(found[-1][2].square().mean().sqrt()) == pytest.approx(0.5 / 192**0.5, rel=0.03)


def test_copied_experts_get_different_noise(saved, tmp_path):
    source = saved("Mixtral-untied")
    axes = {"experts": 2}
    found = {tensor.target.name: noise for tensor, _, noise in noises(source, tmp_path, None, axes, noise=0.1)}
    first, second = (found[f"model.layers.0.block_sparse_moe.experts.{e}.w1.weight"] for e in (0, 1))
    assert first.any()
    assert not torch.equal(first, second)


# Preservation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [2, 3])
def test_preserving_noise_cancels_over_copies_up_to_one_rounding(factor, dtype, tmp_path):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 40, generator=generator).to(dtype)
    tensors = {"0.weight": torch.randn(40, 4).to(dtype), "2.weight": weight, "4.weight": torch.randn(3, 30).to(dtype)}
    save_file(tensors, tmp_path / "net.safetensors")
    widen(
        tmp_path / "net.safetensors",
        tmp_path / "w.safetensors",
        factor,
        recipe="mlp",
        noise=0.5,
        noise_mode="preserving",
        verify=False,
    )
    wide = load_file(tmp_path / "w.safetensors")["2.weight"].double()
    copies = wide.reshape(30, factor, 40, factor)
    unit = torch.finfo(dtype).eps / 2
    error = (copies.sum(-1) - weight.double()[:, None]).abs()
    assert bool((error <= unit * copies.abs().amax(-1) * (1 + 1e-9) + (1e-15 if dtype == torch.float64 else 0)).all())
    assert bool((copies[..., 0] != copies[..., 1]).any())
    assert bool((copies[:, 0] != copies[:, 1]).any())


@pytest.mark.parametrize("case", ["Llama-untied", "GPT2-tied", "ResNet-basic"])
def test_preserving_noise_keeps_the_function_while_the_gradients_of_copies_differ(case, tmp_path):
    """The function is kept exactly in float64; without noise, the gradients of copies are equal."""
    from helpers import MODELS
    from mupscale_cli.checkpoints.reading import open_checkpoint
    from mupscale_cli.verification.comparing import verify_checkpoints
    from mupscale_cli.verification.models import build_reference_model
    from mupscale_cli.verification.options import VerifyOptions
    from training import random_loss

    source = save_model(tmp_path / "narrow", case, dtype=torch.float64)
    differ = {}
    for size in (0.0, 0.3):
        out = tmp_path / f"wide-{size}"
        widened = widen(source, out, 2, noise=size, noise_mode="preserving", verify=False)
        found = verify_checkpoints(open_checkpoint(source), open_checkpoint(out), widened.plan, VerifyOptions())
        assert found.agrees
        assert found.max_rel < 1e-12
        model = build_reference_model(open_checkpoint(out), torch.float64)
        random_loss(model, torch.Generator().manual_seed(0)).backward()
        name = {
            "Llama-untied": "model.layers.0.mlp.up_proj.weight",
            "GPT2-tied": "transformer.h.0.mlp.c_fc.bias",
            "ResNet-basic": "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight",
        }[case]
        gradient = dict(model.named_parameters())[name].grad
        pairs = gradient.reshape(-1, 2, *gradient.shape[1:])
        differ[size] = float((pairs[:, 0] - pairs[:, 1]).abs().max() / gradient.abs().max())
    assert MODELS[case]
    assert differ[0.0] < 1e-12
    assert differ[0.3] > 1e-3


def test_preserving_noise_affects_only_summed_axes(saved, tmp_path):
    found = noises(saved("Llama-untied"), tmp_path, 2, noise=0.1, noise_mode="preserving")
    noisy = {tensor.target.name: ("/" in tensor.layout, bool(noise.any())) for tensor, _, noise in found}
    assert set(noisy.values()) == {(True, True), (False, False)}, noisy


# Errors and records ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": -0.1}, r"the noise is -0\.1"),
        ({"size": float("nan")}, "the noise is nan"),
        ({"size": 0.1, "mode": "loud"}, "unknown `--noise-mode loud`"),
        ({"size": 0.1, "scale": "max"}, "unknown `--noise-scale max`"),
    ],
)
def test_invalid_noise_settings_are_refused(settings, message):
    with pytest.raises(PlanError, match=message):
        Perturbation(**settings)


def test_a_nonfinite_tensor_is_refused_before_noise_hides_it(tmp_path):
    tensors = {"0.weight": torch.randn(8, 4), "2.weight": torch.randn(8, 8), "4.weight": torch.randn(3, 8)}
    tensors["0.weight"][1, 1] = float("nan")
    save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"`0\.weight` contains values that are not finite"):
        widen(tmp_path / "net.safetensors", factor=2, recipe="mlp", noise=0.1, verify=False)


def test_the_record_describes_the_noise(saved, tmp_path):
    found = widen(saved("Llama-untied"), tmp_path / "w", 2, noise=0.1, seed=5, verify=False)
    record = json.loads((tmp_path / "w" / "mupscale.json").read_text())
    assert record["perturbation"] == {"size": 0.1, "mode": "free", "scale": "spectral", "seed": 5}
    assert record["method"] == {"name": "mupscale", "fresh": "init", "spread": "padded", "seed": 5}
    noisy = {tensor.target.name for tensor in found.plan.tensors if tensor.noise is not None}
    assert record["noise"].keys() == noisy
    assert all(std > 0 for std in record["noise"].values())


def test_weights_in_a_training_checkpoint_get_the_noise_of_the_model_file(tmp_path):
    """The names have another prefix: a base model saves its own weights, a trainer those of the whole model."""
    from training import save_training

    source = save_training(tmp_path / "narrow", "Llama-untied", "adamw")
    tensors = load_file(source / "model.safetensors")
    state = torch.load(source / "optimizer.pt")
    torch.save(
        {"optimizer": state, "model": {name.removeprefix("model."): value for name, value in tensors.items()}},
        source / "optimizer.pt",
    )
    widen(source, tmp_path / "wide", 2, noise=0.1, verify=False)
    inside = torch.load(tmp_path / "wide" / "optimizer.pt")["model"]
    outside = load_file(tmp_path / "wide" / "model.safetensors")
    assert len(inside) == len(outside)
    for name, value in outside.items():
        assert torch.equal(inside[name.removeprefix("model.")], value), name
