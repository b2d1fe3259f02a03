"""Recording the outputs of modules by their names, and rounding scaled tensors."""

from copy import deepcopy
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import transformers
from torch import nn

from helpers import MODELS, randomize
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification import activations, compared_outputs
from mupscale_cli.verification.activations import (
    following,
    name_in,
    planned_modules,
    predictions,
    recording,
    round_scaled_tensors,
)
from mupscale_cli.verification.models import build_reference_model


def test_scaled_tensors_are_rounded_as_stored_ones_are(saved):
    source = saved("Gemma-tied", dtype=torch.bfloat16)
    plan = plan_widening(source, factor=2)
    model = build_reference_model(open_checkpoint(source), torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    round_scaled_tensors(model, plan)
    root = 2**0.5
    stored_embedding = (before["model.embed_tokens.weight"] / root).bfloat16().double()
    stored_norm = ((1 + before["model.norm.weight"]) / root - 1).bfloat16().double()
    expected = {
        **before,
        "model.embed_tokens.weight": stored_embedding * root,
        "lm_head.weight": stored_embedding * root,
        "model.norm.weight": (1 + stored_norm) * root - 1,
    }
    after = model.state_dict()
    for name, value in expected.items():
        # Two operations round in float64, on numbers below 8.
        torch.testing.assert_close(after[name], value, rtol=0, atol=2**-48, msg=name)
    assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_tensors_that_the_model_joins_are_rounded_as_the_stored_ones_are(saved):
    """The experts of Qwen3-Next write into a stream that is scaled, since delta nets share the epsilon of its norms."""
    source = saved("Qwen3Next-untied")
    plan = plan_widening(source, axes={"embed": Fraction(3, 2)})
    scale = next(t.scale for t in plan.tensors if t.source.name == "model.layers.0.mlp.experts.0.down_proj.weight")
    model = build_reference_model(open_checkpoint(source), torch.float64)
    joined = dict(model.named_parameters())["model.layers.0.mlp.experts.down_proj"]
    expected = (joined.detach() * scale).float().double() / scale
    round_scaled_tensors(model, plan)
    torch.testing.assert_close(joined.detach(), expected, rtol=2**-51, atol=0)


def test_recording_keeps_the_outputs_of_each_named_module_and_removes_its_hooks():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with recording(model, {"2", "0"}) as trace:
        outputs = [model(torch.ones(1, 2)), model(torch.zeros(1, 2))]
    assert list(trace.outputs) == ["0", "2"]
    assert trace.last == "2"
    assert torch.equal(torch.stack(trace.outputs["2"]), torch.stack(outputs))
    trace.outputs.clear()
    model(torch.ones(1, 2))
    assert not trace.outputs


def test_recording_counts_how_often_a_module_runs_in_one_pass():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(2, 2))
    with recording(model, {"0", "3"}) as trace:
        model(torch.ones(1, 2))
        model(torch.zeros(1, 2))
    assert trace.executions == {"0": 2, "3": 1}
    assert not model._forward_pre_hooks


def test_a_model_that_follows_a_path_starts_every_module_from_the_right_values():
    """A wrong module differs, and those after it do not."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)).double()
    names = {"0": "0", "1": "1", "2": "2"}
    with recording(model, names) as path:
        right = model(torch.ones(1, 2).double())
    wrong = deepcopy(model)
    with torch.no_grad():
        wrong[1].weight *= 2
        wrong[1].bias *= 2
    with following(wrong, path, names, lambda _name, narrow, _output: iter((narrow,))) as trace:
        output = wrong(torch.ones(1, 2).double())
    assert [comparison.max_rel for comparison in trace.comparisons.values()] == [0, 1, 0]
    assert torch.equal(output, right)
    wrong[2].weight.data *= 2
    with following(wrong, path, names, lambda _name, narrow, _output: iter((narrow,))) as trace:
        output = wrong(torch.ones(1, 2).double())
    assert not torch.equal(output, right)  # the last module's output is left alone
    assert trace.comparisons["2"].max_rel > 0.1


def test_the_values_of_a_path_can_be_disturbed():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).double()
    names = {"0": "0", "1": "1"}
    with recording(model, names) as path:
        model(torch.ones(1, 2).double())
    with following(
        model, path, names, lambda _name, narrow, _output: iter((narrow,)), lambda value: value * 3
    ) as trace:
        output = model(torch.ones(1, 2).double())
    assert trace.comparisons["0"].max_rel == 0
    torch.testing.assert_close(output, model[1](3 * path.outputs["0"][0]))


def test_recording_removes_its_hooks_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError), recording(model, {"0"}):
        model(torch.ones(1, 3))
    assert not model[0]._forward_hooks


def test_names_of_a_base_model_are_found_with_its_prefix():
    model = nn.Module()
    model.base_model_prefix = "transformer"
    known = {"transformer.wte": 1, "lm_head": 2}
    assert name_in(model, "wte", known) == "transformer.wte"
    assert name_in(model, "lm_head", known) == "lm_head"
    assert name_in(model, "wpe", known) is None


ROOT = 2**0.5


@pytest.fixture
def dory(saved):
    """A model whose stream has length 1, so that copies in it are 1/sqrt(2) of the originals, and its plan for 2."""
    source = saved("Dory-untied")
    return build_reference_model(open_checkpoint(source), torch.float64), plan_widening(source, factor=2)


def scales(planned, size):
    """Return the scales of the copies that the output of a module may have."""
    narrow = torch.ones(1, 2, size, dtype=torch.float64)
    wide = torch.zeros(1, 2, planned.weight.target.shape[0], dtype=torch.float64)
    found = list(predictions(planned, narrow, wide))
    assert all(torch.equal(value, torch.full_like(wide, value[0, 0, 0])) for value in found)
    return [float(value[0, 0, 0]) for value in found]


def test_a_module_that_reads_the_stream_shows_the_scale_that_all_its_writers_give_it(dory):
    """The projections of Dory write to the stream with 1/sqrt(2), which its gates show and its queries make up for."""
    planned = planned_modules(*dory)
    attention, mlp = "model.layers.1.self_attn", "model.layers.1.mlp"
    expected = {
        f"{attention}.gate_proj": (1 / ROOT, [1, 1 / ROOT]),
        f"{mlp}.up_proj": (1 / ROOT, [1, 1 / ROOT]),
        f"{attention}.q_proj": (1 / ROOT, [1, ROOT]),
        f"{attention}.v_proj": (1 / ROOT, [1 / ROOT, 1]),
        f"{mlp}.down_proj": (1, [1 / ROOT, 1]),
    }
    for name, (input_scale, outputs) in expected.items():
        module = planned[name]
        assert module.input_scale == pytest.approx(input_scale), name
        found = scales(module, module.weight.source.shape[0])
        assert sorted({round(scale, 9) for scale in found}) == sorted({round(each, 9) for each in outputs}), name


def test_a_stream_whose_writers_disagree_has_no_known_scale(dory):
    model, plan = dory
    last = "layers.2.mlp.down_proj.weight"
    shards = (
        replace(
            shard, tensors=tuple(replace(t, scale=3.0) if t.source.name.endswith(last) else t for t in shard.tensors)
        )
        for shard in plan.shards
    )
    planned = planned_modules(model, replace(plan, shards=tuple(shards)))
    assert {module.input_scale for module in planned.values()} == {1.0}
    gate = planned["model.layers.1.self_attn.gate_proj"]
    assert scales(gate, gate.weight.source.shape[0]) == [1.0]


def test_embeddings_do_not_decide_the_scale_of_the_stream(saved):
    """Gemma's embedding is divided by a root that its class multiplies by; its layers write what they did."""
    source = saved("Gemma-tied")
    planned = planned_modules(
        build_reference_model(open_checkpoint(source), torch.float64), plan_widening(source, factor=2)
    )
    assert {module.input_scale for module in planned.values()} == {1.0}


def test_a_right_model_needs_the_scale_of_its_stream(saved, tmp_path, monkeypatch):
    """Without it, the outputs of a gate that reads the stream are no copies."""
    monkeypatch.setattr(activations, "written_scales", lambda _plan: {})
    found = widen(saved("Dory-untied"), tmp_path / "wide", 2, dtype="float64").verification
    assert not found.agrees
    assert found.first_difference.what == "model.layers.0.self_attn.gate_proj"
    assert all(comparison.max_rel < 1e-11 for comparison in found.comparisons if "logits" in comparison.what)


def test_states_of_a_headless_model_have_the_scale_of_its_stream(tmp_path, monkeypatch):
    """Dory's last state has length 1, so that each copy is 1/sqrt(2) of the original."""
    _, config_class, settings = MODELS["Dory-untied"]
    model = randomize(transformers.DoryModel(getattr(transformers, config_class)(**settings)).double())
    model.save_pretrained(tmp_path / "narrow")
    assert widen(tmp_path / "narrow", tmp_path / "wide", 2, dtype="float64").verification.agrees
    monkeypatch.setattr(compared_outputs, "written_scales", lambda _plan: {})
    assert not widen(tmp_path / "narrow", tmp_path / "other", 2, dtype="float64").verification.agrees
