"""Hyperparameters of a widened model: groups, their patterns, and warnings about what is not exact."""

import re

import pytest

from cli_runner import run
from mupscale_cli.optimizers.hyperparameters import Settings, hyperparameters, name_pattern
from mupscale_cli.optimizers.multipliers import Multipliers
from mupscale_cli.tasks.widen import widen


def groups_of(wide, **settings):
    hparams = hyperparameters(wide.record, Settings(**{"lr": 1e-3, "weight_decay": 0.1, **settings}))
    return hparams, {name: group for group in hparams.groups for name in group.tensors}


Q, NORM, EMBED, HEAD_NORM = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_norm.weight",
)


def test_groups_have_the_values_of_the_table(wide):
    hparams, by_name = groups_of(wide)
    assert by_name[Q].lr == 1e-3 / 4
    assert by_name[Q].eps == 1e-8 / 4
    assert by_name[Q].weight_decay == pytest.approx(0.4)
    assert by_name[Q].clip_weight == 1
    assert (by_name[EMBED].lr, by_name[EMBED].weight_decay, by_name[EMBED].clip_weight) == (1e-3, 0.1, 4)
    assert (by_name[NORM].lr, by_name[NORM].weight_decay, by_name[NORM].clip_weight) == (1e-3 / 4, 0, 1 / 4)
    assert by_name[HEAD_NORM].multipliers == Multipliers(1, 1, 1, 1)
    assert sum(len(group.tensors) for group in hparams.groups) == len(by_name)


def test_patterns_match_their_tensors_and_no_others(wide):
    hparams, by_name = groups_of(wide)
    for group in hparams.groups:
        assert {name for name in by_name if re.search(group.pattern, name)} == set(group.tensors)


def test_a_pattern_names_layers_if_any_number_would_match_too_much():
    names = ["l.0.w", "l.1.w", "l.2.w", "l.0.b"]
    pattern = name_pattern(["l.0.w", "l.2.w"], names)
    assert [name for name in names if re.search(pattern, name)] == ["l.0.w", "l.2.w"]


def test_inexact_hyperparameters_have_a_warning(saved, tmp_path):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "-1"], "at least 0"),
        (["--lr", "1", "--optimizer", "adamv"], "did you mean"),
        (["--lr", "1", "--betas", "0.9"], "two numbers"),
        (["--lr", "1", "--decay", "some"], "matrices, all, none"),
        (["--lr", "1", "--format", "xml"], "unknown format `xml`"),
        (
            ["--lr", "1", "--optimizer", "lion", "--format", "torchtitan"],
            "groups by pattern with lion",
        ),
    ],
)
def test_hparams_refuses_invalid_options(arguments, message, wide):
    result = run("hparams", str(wide.output), *arguments)
    assert result.code == 2
    assert message in result.err


def test_hparams_refuses_a_narrow_checkpoint(saved):
    assert "not written by mupscale" in run("hparams", str(saved("Llama-tied")), "--lr", "1").err
