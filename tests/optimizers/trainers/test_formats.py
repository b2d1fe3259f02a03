"""Hyperparameters in the formats of trainers."""

import ast
import json
import re
import shlex

import pytest
import torch
import yaml

import mupscale
from cli_runner import run
from mupscale_cli.checkpoints.layouts.table import LAYOUTS
from mupscale_cli.optimizers.hyperparameters import Settings, hyperparameters
from mupscale_cli.optimizers.trainers.formats import TRAINER_FORMATS

Q = "model.layers.0.self_attn.q_proj.weight"
EMBED = "model.embed_tokens.weight"
HEAD_NORM = "model.layers.0.self_attn.q_norm.weight"


def by_name_of(wide):
    hparams = hyperparameters(wide.record, Settings(lr=1e-3, weight_decay=0.1))
    return {name: group for group in hparams.groups for name in group.tensors}


@pytest.mark.parametrize("format_name", TRAINER_FORMATS)
def test_every_format_is_valid_in_its_language(format_name, wide):
    result = run("hparams", str(wide.output), "--lr", "1e-3", "--weight-decay", "0.1", "--format", format_name)
    assert result.code == 0, result.err
    match format_name:
        case "json":
            assert len(json.loads(result.out)["groups"]) >= 4
        case "yaml" | "nemo" | "bsh":
            assert yaml.safe_load(result.out)
        case "torch" | "megatron" | "trainer" | "accelerate" | "loop":
            ast.parse(result.out)
        case "torchtitan":
            ast.parse(f"f({result.out})")


def test_the_torch_format_creates_the_groups(wide):
    import transformers

    text = run("hparams", str(wide.output), "--lr", "1e-3", "--weight-decay", "0.1", "--format", "torch").out
    namespace = {}
    exec(text, namespace)  # noqa: S102 (what a user would paste)
    model = transformers.AutoModelForCausalLM.from_pretrained(wide.output)
    by_name = by_name_of(wide)
    optimizer = torch.optim.AdamW(namespace["param_groups"](model))
    seen = {name for group in optimizer.param_groups for name in group["param_names"]}
    assert seen == set(by_name)
    for group in optimizer.param_groups:
        for name in group["param_names"]:
            assert group["lr"] == by_name[name].lr
            assert group["weight_decay"] == by_name[name].weight_decay
            assert group["lr_factor"] == group["lr"] / 1e-3


@pytest.mark.parametrize("format_name", ["trainer", "accelerate", "loop"])
def test_code_names_the_checkpoint_and_the_narrow_run(format_name, wide):
    text = run("hparams", str(wide.output), "--lr", "1e-3", "--betas", "0.9,0.95", "--format", format_name).out
    assert "torch.optim.AdamW(..., lr=0.001, weight_decay=0.0, eps=1e-08, betas=(0.9, 0.95))" in text
    assert repr(str(wide.output)) in text
    assert all(hasattr(mupscale, name) for name in re.findall(r"mupscale\.(\w+)", text))


def test_lines_for_a_run_that_starts_from_weights_resume_nothing(wide):
    for format_name, call in (("trainer", ".train()"), ("accelerate", "load_state"), ("loop", "load_state_dict")):
        text = run("hparams", str(wide.output), "--lr", "1e-3", "--format", format_name).out
        assert (call in text) == (format_name == "trainer")


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.next_lines], ids=lambda each: each.name)
def test_lines_of_a_layout_name_a_path_with_a_space_in_the_shell_and_in_python(layout):
    lines = [line.removeprefix("+ ") for line in layout.next_lines("my runs/it's wide") if line[:1] not in ("#", " ")]
    python = [line for line in lines if "it's wide" in line and "mupscale." in line]
    for line in python:
        compile(line, "next", "exec")
        assert '"my runs/it\'s wide"' in line
    for line in lines:
        if "wide" in line and line not in python and line[:2] != "- ":
            assert "wide" in " ".join(shlex.split(line.removesuffix("\\"), comments=True))


def test_base_shapes_have_the_sizes_of_widened_dimensions(wide):
    shapes = yaml.safe_load(run("hparams", str(wide.output), "--lr", "1", "--format", "bsh").out)
    assert shapes[EMBED] == [None, 48]
    assert shapes[Q] == [32, 48]
    assert shapes[HEAD_NORM] == [None]
