"""Hyperparameters of a widened model: groups, patterns, and trainers' forms."""

import ast
import json
import re

import pytest
import torch
import yaml

from cli_runner import run
from mupscale_cli.errors import CheckpointError, PlanError
from mupscale_cli.optimizers.hyperparameters import Settings, hyperparameters, name_pattern
from mupscale_cli.optimizers.multipliers import Multipliers
from mupscale_cli.optimizers.torch_groups import clip_grad_norm_, param_groups
from mupscale_cli.optimizers.trainers import FORMS
from mupscale_cli.tasks.widen import widen


@pytest.fixture(scope="module")
def wide(saved, tmp_path_factory):
    output = tmp_path_factory.mktemp("hparams") / "wide"
    return widen(saved("Qwen3-tied"), output, 4, verify=False)


def groups_of(wide, **settings):
    found = hyperparameters(wide.record, Settings(**{"lr": 1e-3, "weight_decay": 0.1, **settings}))
    return found, {name: group for group in found.groups for name in group.tensors}


Q, NORM, EMBED, HEAD_NORM = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_norm.weight",
)


def test_groups(wide):
    found, by_name = groups_of(wide)
    assert by_name[Q].lr == 1e-3 / 4
    assert by_name[Q].eps == 1e-8 / 4
    assert by_name[Q].weight_decay == pytest.approx(0.4)
    assert by_name[Q].clip_weight == 1
    assert (by_name[EMBED].lr, by_name[EMBED].weight_decay, by_name[EMBED].clip_weight) == (1e-3, 0.1, 4)
    assert (by_name[NORM].lr, by_name[NORM].weight_decay, by_name[NORM].clip_weight) == (1e-3 / 4, 0, 1 / 4)
    assert by_name[HEAD_NORM].multipliers == Multipliers(1, 1, 1, 1)
    assert sum(len(group.tensors) for group in found.groups) == len(by_name)


def test_patterns_match_their_tensors_and_no_others(wide):
    found, by_name = groups_of(wide)
    for group in found.groups:
        assert {name for name in by_name if re.search(group.pattern, name)} == set(group.tensors)


def test_a_pattern_names_layers_where_numbers_would_match_too_much():
    names = ["l.0.w", "l.1.w", "l.2.w", "l.0.b"]
    pattern = name_pattern(["l.0.w", "l.2.w"], names)
    assert [name for name in names if re.search(pattern, name)] == ["l.0.w", "l.2.w"]


def test_what_cannot_be_exact_is_said(saved, tmp_path):
    gemma = widen(saved("Gemma-tied"), tmp_path / "gemma", 2, verify=False)
    warnings = groups_of(gemma, decay="all")[0].warnings
    assert any(NORM in warning and "difference from 1" in warning for warning in warnings)
    assert groups_of(gemma)[0].warnings == ()
    gpt2 = widen(saved("GPT2-tied"), tmp_path / "gpt2", axes={"embed": 2, "d": 2}, verify=False)
    assert any("c_attn" in warning for warning in groups_of(gpt2)[0].warnings)
    assert any("AdamW" in warning for warning in groups_of(gemma, optimizer="muon")[0].warnings)


def test_advice_names_its_source(wide):
    assert all("arXiv" in advice for advice in groups_of(wide, optimizer="lion")[0].advice)
    assert len(groups_of(wide, optimizer="lion")[0].advice) == 3


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_valid_in_its_language(form, wide):
    result = run("hparams", str(wide.output), "--lr", "1e-3", "--weight-decay", "0.1", "--format", form)
    assert result.code == 0, result.err
    match form:
        case "json":
            assert len(json.loads(result.out)["groups"]) >= 4
        case "yaml" | "nemo" | "bsh":
            assert yaml.safe_load(result.out)
        case "torch" | "megatron":
            ast.parse(result.out)
        case "torchtitan":
            ast.parse(f"f({result.out})")


def test_the_torch_form_makes_the_groups(wide):
    import transformers

    text = run("hparams", str(wide.output), "--lr", "1e-3", "--weight-decay", "0.1", "--format", "torch").out
    namespace = {}
    exec(text, namespace)  # noqa: S102 (what a user would paste)
    model = transformers.AutoModelForCausalLM.from_pretrained(wide.output)
    by_name = groups_of(wide)[1]
    made = torch.optim.AdamW(namespace["param_groups"](model))
    seen = {name for group in made.param_groups for name in group["param_names"]}
    assert seen == set(by_name)
    for group in made.param_groups:
        for name in group["param_names"]:
            assert group["lr"] == by_name[name].lr
            assert group["weight_decay"] == by_name[name].weight_decay


def test_base_shapes_say_what_is_finite(wide):
    shapes = yaml.safe_load(run("hparams", str(wide.output), "--lr", "1", "--format", "bsh").out)
    assert shapes[EMBED] == [None, 48]
    assert shapes[Q] == [32, 48]
    assert shapes[HEAD_NORM] == [None]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--lr", "-1"], "at least 0"),
        (["--lr", "1", "--optimizer", "adamv"], "did you mean"),
        (["--lr", "1", "--betas", "0.9"], "two numbers"),
        (["--lr", "1", "--decay", "some"], "matrices, all, none"),
        (["--lr", "1", "--format", "xml"], "no form `xml`"),
        (["--lr", "1", "--optimizer", "lion", "--format", "torchtitan"], "torchtitan has no lion"),
    ],
)
def test_hparams_refuses(arguments, says, wide):
    result = run("hparams", str(wide.output), *arguments)
    assert result.code == 2
    assert says in result.err


def test_hparams_of_a_narrow_checkpoint(saved):
    assert "not written by mupscale" in run("hparams", str(saved("Llama-tied")), "--lr", "1").err


# In a training loop ---------------------------------------------------------------------------


def test_param_groups_of_a_model(wide):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(wide.output)
    groups = param_groups(model, wide.output, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    by_name = groups_of(wide)[1]
    for group in groups:
        for name in group["param_names"]:
            expected = by_name[name]
            assert group["lr"] == expected.lr
            assert group["eps"] == expected.eps
            assert group["weight_decay"] == expected.weight_decay
            assert group["betas"] == (0.9, 0.95)
    assert {name for group in groups for name in group["param_names"]} == {n for n, _ in model.named_parameters()}
    only = param_groups(model, wide.output, lr=1e-3, weight_decay=0.1, decay=[Q])
    assert [group["param_names"] for group in only if group["weight_decay"]] == [[Q]]
    for decay, is_decayed in (("all", lambda _: True), ("none", lambda _: False), ("matrices", lambda p: p.dim() > 1)):
        groups = param_groups(model, wide.output, lr=1e-3, weight_decay=0.1, decay=decay)
        assert all(bool(group["weight_decay"]) == is_decayed(p) for group in groups for p in group["params"])
    with pytest.raises(PlanError, match="`decay` is `some`"):
        param_groups(model, wide.output, lr=1e-3, decay="some")


def test_groups_for_another_model(wide, saved):
    import transformers

    narrow = transformers.AutoModelForCausalLM.from_pretrained(saved("Qwen3-tied"))
    with pytest.raises(CheckpointError, match="has the shape"):
        param_groups(narrow, wide.output, lr=1)
    with pytest.raises(CheckpointError, match="is not in the widened checkpoint"):
        param_groups(torch.nn.Linear(2, 2), wide.output, lr=1)
    with pytest.raises(CheckpointError, match="not written by mupscale"):
        param_groups(narrow, saved("Qwen3-tied"), lr=1)


def test_the_weighted_norm_is_that_of_the_narrow_gradient(wide, saved):
    import transformers

    tokens = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
    norms = []
    for place in (saved("Qwen3-tied"), wide.output):
        model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64)
        model(tokens, labels=tokens).loss.backward()
        if place == wide.output:
            groups = param_groups(model, place, lr=1)
            norm = clip_grad_norm_(groups, 0.1)
            again = clip_grad_norm_(groups, float("inf"))
            assert again == pytest.approx(0.1, rel=1e-4)
        else:
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        norms.append(norm.item())
    # The reference computes norms and softmax in float32.
    assert norms[1] == pytest.approx(norms[0], rel=16 * 2**-24)
    assert norms[0] > 0.1


def test_parameters_are_called_what_the_model_calls_them(saved, tmp_path):
    """GPT-NeoX saves `lm_head` as `embed_out`."""
    import transformers

    wide = widen(saved("GPTNeoX-untied"), tmp_path / "wide", 2, verify=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(wide.output)
    groups = param_groups(model, wide.output, lr=1.0)
    rate = next(group["lr"] for group in groups if "lm_head.weight" in group["param_names"])
    assert rate == 1 / 2
    assert "lm_head.weight" in groups_of(wide)[1]
