"""Weights that stay in their file: both ways of loading a model give the same verdict and the same figures."""

import os
import shutil
from functools import wraps

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import MODELS
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.engine.reading import map_tensor
from mupscale_cli.errors import CheckpointError
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification import comparing
from mupscale_cli.verification.models import build_reference_model
from mupscale_cli.verification.streamed import ChangesWeightError, StreamedWeight, change, doubled

# Matrices stored transposed, merged experts, a tied encoder-decoder, a mixer that reads its children's weights.
SAMPLE = ("Mixtral-untied", "T5-tied")
WEIGHT = torch.arange(12.0).reshape(3, 4).bfloat16()


def streamed(values=WEIGHT):
    return nn.Parameter(StreamedWeight(values, torch.float64, torch.device("cpu")))


def both_ways(case, saved, tmp_path, monkeypatch, **options):
    """Verify a damaged and an undamaged wide model, with streamed weights and with whole ones."""
    wide = tmp_path / "wide"
    widen(saved(case), wide, 2, verify=False, **options)
    found = []
    for is_damaged in (False, True):
        if is_damaged:
            file = wide / "model.safetensors"
            weights = load_file(file)
            # Not one of experts, which no token may reach; verification then says so.
            matrices = (name for name in weights if weights[name].dim() > 1 and ".experts." not in name)
            name = max(matrices, key=lambda name: (weights[name].numel(), name))
            weights[name].view(-1)[:1000] += 1
            save_file(weights, file, metadata={"format": "pt"})
        for is_streamed in (True, False):
            monkeypatch.setattr(comparing, "can_stream", lambda _, answer=is_streamed: answer)
            found.append(verify(wide, only=["function"]).function)
    return found


def assert_alike(one, other):
    assert one.agrees == other.agrees
    assert (one.tolerance, one.num_modules, one.module_by_module) == (
        other.tolerance,
        other.num_modules,
        other.module_by_module,
    )
    assert [c.what for c in one.comparisons] == [c.what for c in other.comparisons]
    for a, b in zip((*one.comparisons, *one.modules), (*other.comparisons, *other.modules), strict=True):
        assert a.max_rel == pytest.approx(b.max_rel, rel=1e-6, abs=one.tolerance / 10), a.what


@pytest.mark.parametrize("case", SAMPLE)
def test_streamed_and_whole_weights_give_the_same_verdict(case, saved, tmp_path, monkeypatch):
    right, whole_right, wrong, whole_wrong = both_ways(case, saved, tmp_path, monkeypatch)
    assert right.agrees
    assert not wrong.agrees
    assert_alike(right, whole_right)
    assert_alike(wrong, whole_wrong)


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(set(MODELS) - set(SAMPLE)))
def test_every_architecture_gives_the_same_verdict(case, saved, tmp_path, monkeypatch):
    found = both_ways(case, saved, tmp_path, monkeypatch)
    assert [each.agrees for each in found] == [True, True, False, False]
    assert_alike(*found[:2])
    assert_alike(*found[2:])


@pytest.mark.parametrize(
    "use",
    [
        lambda w: nn.functional.linear(torch.ones(2, 3, 4).double(), w),
        lambda w: nn.functional.linear(torch.ones(2, 4).double(), w, torch.ones(3).double()),
        lambda w: nn.functional.embedding(torch.tensor([[2, 0]]), w),
        lambda w: torch.ones(2, 3).double() @ w,
        lambda w: w[1] + w.T[2, 1],
        lambda w: torch.cat([w, w]).view(2, 12).sum(0),
        lambda w: torch.stack([w, w])[1].contiguous() * 2,
        lambda w: nn.functional.conv1d(torch.ones(1, 4, 5).double(), w.unsqueeze(-1)),
        lambda w: w.data.norm() + w.detach().float().sum(),
    ],
)
def test_any_operation_sees_the_weight_in_the_type_of_the_model(use):
    with torch.no_grad():
        found, expected = use(streamed()), use(WEIGHT.double())
    found = found.values() if isinstance(found, StreamedWeight) else found
    assert torch.equal(found, expected.double())


@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_of_many_pieces_is_the_product(threads, monkeypatch):
    monkeypatch.setattr("mupscale_cli.verification.streamed._PIECE", 8)  # two columns of four rows
    monkeypatch.setattr("mupscale_cli.verification.streamed.num_threads", lambda: threads)
    test_any_operation_sees_the_weight_in_the_type_of_the_model(lambda w: torch.eye(4).double() @ w.T)


def test_gradients_reach_a_streamed_weight():
    weight = streamed()
    loss = nn.functional.linear(torch.ones(2, 4).double(), weight).sum()
    assert torch.equal(torch.autograd.grad(loss, [weight])[0], torch.full((3, 4), 2.0).double())


def test_a_streamed_weight_cannot_be_overwritten():
    with torch.no_grad(), pytest.raises(ChangesWeightError, match="read from a file"):
        streamed().mul_(2)


@pytest.mark.parametrize("method", ["_init_weights", "forward"])
def test_a_model_that_changes_a_weight_in_place_is_loaded_whole(method, saved, tmp_path, monkeypatch):
    """While it is loaded, as some classes do with the row of the padding token, or while it runs."""
    original, loads = getattr(transformers.LlamaForCausalLM, method), []

    @wraps(original)
    def changing(model, *arguments, **keywords):
        weight = next(model.parameters())
        loads.append(isinstance(weight, StreamedWeight))
        weight.data[0].zero_()
        return original(model, *arguments, **keywords)

    widen(saved("Llama-untied"), tmp_path / "wide", 2, verify=False)
    monkeypatch.setattr(transformers.LlamaForCausalLM, method, changing)
    assert verify(tmp_path / "wide", only=["function"]).function.agrees
    assert loads[0]
    assert not loads[-1]


def test_changes_are_applied_when_the_weight_is_read():
    weight, plain = streamed(), nn.Parameter(WEIGHT.double())
    x = torch.ones(1, 4).double()
    with torch.no_grad():
        for parameter in (weight, plain):
            change(parameter, lambda values: values.double() + 1)
        with doubled([weight, plain]):
            assert torch.equal(nn.functional.linear(x, weight), 2 * nn.functional.linear(x, WEIGHT.double() + 1))
            assert torch.equal(nn.functional.linear(x, plain), nn.functional.linear(x, weight))
        assert torch.equal(nn.functional.linear(x, weight), nn.functional.linear(x, plain))


def test_the_model_takes_no_memory_for_its_weights_and_keeps_what_is_shared(saved):
    checkpoint = open_checkpoint(saved("Llama-tied", dtype=torch.bfloat16))
    model = build_reference_model(checkpoint, torch.float64, is_streamed=True)
    assert all(isinstance(parameter, StreamedWeight) for parameter in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {parameter.stored.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.dtype == torch.float64


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(saved):
    checkpoint = open_checkpoint(saved("Llama-tied"))
    before = checkpoint.files[0].read_bytes()
    name, stored = next(iter(checkpoint.tensors.items()))
    tensor, file = map_tensor(stored, {})
    assert torch.equal(tensor, load_file(checkpoint.files[0])[name])
    tensor.zero_()
    assert not tensor.any()
    file.release()  # which forgets what was written
    assert torch.equal(tensor, load_file(checkpoint.files[0])[name])
    assert checkpoint.files[0].read_bytes() == before


def test_a_file_that_becomes_shorter_is_an_error(saved, tmp_path):
    """Reading a mapped byte beyond the end would end the process."""
    stored = open_checkpoint(shutil.copytree(saved("Llama-tied"), tmp_path / "copy")).tensors["model.norm.weight"]
    tensor, file = map_tensor(stored, {})
    weight = StreamedWeight(tensor, torch.float64, torch.device("cpu"), (file,))
    assert torch.equal(weight + 0, tensor.double())
    os.truncate(file.path, 100)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        weight + 0
