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
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

# Reproducibility ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["free", "preserving"])
@pytest.mark.parametrize(("case", "factor", "axes"), [("Qwen3-tied", 3, {}), ("GPT2-untied", 2, {"h": 2})])
def test_noise_does_not_depend_on_blocks_and_shards(case, factor, axes, mode, saved, tmp_path):
    found = find_source(saved(case))
    contents = []
    for block, shard in ((1 << 23, 10**9), (1, 10**9), (5000, 30_000)):
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


def test_fan_in_noise_is_a_fresh_initialization(tmp_path):
    """The size is T / sqrt(fan_in) of the wide layer; a readout with 1/k in its weights has its noise divided too."""
    tensors = {"0.weight": torch.randn(64, 50), "2.weight": torch.randn(96, 64), "4.weight": torch.randn(30, 96)}
    save_file(tensors, tmp_path / "net.safetensors")
    options = {"noise": 0.5, "noise_scale": "fan-in"}
    found = list(noises(tmp_path / "net.safetensors", tmp_path, 2, recipe="mlp", **options))
    stds = [float(noise.square().mean().sqrt()) for _, _, noise in found]
    assert stds == pytest.approx([0.5 / 50**0.5, 0.5 / 128**0.5, 0.5 / 192**0.5 / 2], rel=0.03)
    found = list(noises(tmp_path / "net.safetensors", tmp_path / "x", 2, recipe="mlp_mup", **options))
    assert float(found[-1][2].square().mean().sqrt()) == pytest.approx(0.5 / 192**0.5, rel=0.03)


def widened_by_the_papers_scripts(weights, factor, size, generator):
    """Widen an MLP as the scripts of arXiv 2602.10545 do: add the copies to noise, then divide hidden matrices by k.

    The noise is `kaiming_normal_(a=1)` of the wide matrix, times T; that of a MuReadout is zero.
    """
    *hidden, readout = weights
    for number, weight in enumerate(hidden):
        inputs = 1 if number == 0 else factor
        wide = weight.repeat_interleave(factor, 0).repeat_interleave(inputs, 1)
        noise = torch.randn(wide.shape, generator=generator, dtype=wide.dtype) * (size / wide.shape[1] ** 0.5)
        yield (noise + wide) / inputs
    yield readout.repeat_interleave(factor, 1)


@pytest.mark.parametrize("recipe", ["mlp", "mlp_mup"])
@pytest.mark.parametrize("factor", [2, 4])
def test_paper_noise_has_the_size_of_the_papers_scripts(factor, recipe, tmp_path):
    shapes = {"0.weight": (64, 50), "2.weight": (96, 64), "4.weight": (80, 96), "6.weight": (30, 80)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "net.safetensors")
    options = {"recipe": recipe, "noise": 0.5, "noise_scale": "paper"}
    found = list(noises(tmp_path / "net.safetensors", tmp_path, factor, **options))
    generator = torch.Generator().manual_seed(0)
    narrow = [tensor.double() for tensor in tensors.values()]
    noisy = widened_by_the_papers_scripts(narrow, factor, 0.5, generator)
    plain = widened_by_the_papers_scripts(narrow, factor, 0.0, generator)
    for (tensor, _, ours), with_noise, without in zip(found, noisy, plain, strict=True):
        theirs = with_noise - without
        if tensor.noise is None:
            assert tensor.target.name == "6.weight"
            assert not ours.any()
            assert not theirs.any()
            continue
        sampling = 4 / math.sqrt(ours.numel())  # four standard errors of a ratio of two estimates
        assert float(ours.std() / theirs.std()) == pytest.approx(1, rel=sampling)


def test_paper_noise_of_a_convolution_counts_its_kernel(tmp_path):
    source = save_model(tmp_path / "narrow", "ResNet-basic")
    name = "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"
    found = {t.target.name: noise for t, _, noise in noises(source, tmp_path, 2, noise=0.5, noise_scale="paper")}
    noise = found[name]
    assert float(noise.square().mean().sqrt()) == pytest.approx(0.5 / 2 / noise[0].numel() ** 0.5, rel=0.05)


@pytest.mark.parametrize("scale", ["spectral", "rms"])
def test_mixed_noise_keeps_the_norm(scale, tmp_path):
    """W'' = sqrt(1 - T) W + sqrt(T) Z, where Z has the norm of W."""
    tensors = {"0.weight": torch.randn(64, 50), "2.weight": torch.randn(96, 64), "4.weight": torch.randn(30, 96)}
    save_file(tensors, tmp_path / "net.safetensors")
    options = {"recipe": "mlp", "noise": 0.36, "noise_mode": "mixed", "noise_scale": scale}
    for tensor, weight, difference in noises(tmp_path / "net.safetensors", tmp_path, 2, **options):
        noise = difference + (1 - 0.8) * weight
        is_matrix = tensor.target.name == "2.weight"
        if scale == "spectral" and is_matrix:  # a Gaussian matrix of this size is up to a tenth below its mean bound
            ratio = torch.linalg.matrix_norm(noise, 2) / torch.linalg.matrix_norm(weight, 2)
            assert 0.54 < ratio < 0.62
            continue
        norm = torch.linalg.norm
        assert float(norm(noise) / norm(weight)) == pytest.approx(0.6, rel=0.03)
        if scale == "rms":
            assert float(norm(weight + difference) / norm(weight)) == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize("mode", ["free", "preserving", "mixed"])
def test_elementwise_noise_is_relative_to_each_element(mode, tmp_path):
    """The Hadamard form: t Z |W|, so elements that are zero stay zero."""
    tensors = {"0.weight": torch.randn(64, 50), "2.weight": torch.randn(96, 64), "4.weight": torch.randn(30, 96)}
    tensors["2.weight"][:, :10] = 0
    save_file(tensors, tmp_path / "net.safetensors")
    options = {"recipe": "mlp", "noise": 0.09, "noise_mode": mode, "noise_scale": "elementwise"}
    noisy = 0
    for tensor, weight, difference in noises(tmp_path / "net.safetensors", tmp_path, 2, **options):
        if tensor.noise is None:
            continue
        noisy += 1
        share, size = (math.sqrt(0.91), 0.3) if mode == "mixed" else (1.0, 0.09)
        noise, elements = difference + (1 - share) * weight, weight.abs() > 0
        assert not noise[~elements].any()
        relative = noise[elements] / weight.abs()[elements]
        large = weight.abs()[elements] > weight.std()
        expected = pytest.approx(size, rel=4 / math.sqrt(large.sum()))
        assert float(relative.std()) == expected
        assert float(relative[large].std()) == expected
        if mode == "preserving" and tensor.target.name == "2.weight":
            assert float((difference.reshape(192, 64, 2).sum(-1)).abs().max()) < 1e-6
    assert noisy == (2 if mode == "preserving" else 3)


def test_noise_on_chosen_tensors_leaves_all_others_alone(tmp_path):
    """The complement is what is to stay frozen, such as the first and the last layer."""
    tensors = {"0.weight": torch.randn(16, 5), "2.weight": torch.randn(16, 16), "4.weight": torch.randn(3, 16)}
    save_file(tensors, tmp_path / "net.safetensors")
    source = tmp_path / "net.safetensors"
    every = {t.target.name: noise for t, _, noise in noises(source, tmp_path, 2, recipe="mlp", noise=0.1)}
    options = {"recipe": "mlp", "noise": 0.1, "noise_on": ["2.*"]}
    some = {t.target.name: noise for t, _, noise in noises(source, tmp_path / "some", 2, **options)}
    assert [name for name, noise in some.items() if noise.any()] == ["2.weight"]
    assert torch.equal(some["2.weight"], every["2.weight"])
    with pytest.raises(PlanError, match=r'`noise_on="3\.\*"` selects no tensor that gets noise'):
        widen(source, tmp_path / "none.safetensors", 2, recipe="mlp", noise=0.1, noise_on=["2.*", "3.*"], verify=False)


@pytest.mark.parametrize(
    ("mode", "scale"),
    [("free", "paper"), ("preserving", "elementwise"), ("mixed", "spectral"), ("mixed", "elementwise")],
)
def test_verify_generates_the_noise_again(mode, scale, tmp_path):
    source = save_model(tmp_path / "narrow", "Llama-untied", dtype=torch.bfloat16)
    options = {"noise": 0.2, "noise_mode": mode, "noise_scale": scale, "noise_on": ["*.layers.*"]}
    widen(source, tmp_path / "wide", 2, seed=3, verify=False, **options)
    assert verify(tmp_path / "wide", only=("weights",)).agrees
    file = tmp_path / "wide" / "mupscale.json"
    for key, other in (("on", ["*.layers.0.*"]), ("mode", "free" if mode != "free" else "mixed"), ("scale", "init")):
        record = json.loads(file.read_text())
        (tmp_path / "wide" / "mupscale.json").write_text(
            json.dumps({**record, "perturbation": {**record["perturbation"], key: other}})
        )
        assert not verify(tmp_path / "wide", only=("weights",)).agrees, key
        file.write_text(json.dumps(record))


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
        ({"size": 0.1, "mode": "loud"}, 'unknown `noise_mode="loud"`'),
        ({"size": 0.1, "scale": "max"}, 'unknown `noise_scale="max"`'),
        ({"size": 1.5, "mode": "mixed"}, "gives the weights the share 1 - T"),
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
    assert record["perturbation"] == {"size": 0.1, "mode": "free", "scale": "spectral", "seed": 5, "on": []}
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
