"""Numbered parameters of an optimizer get their names, also where others were frozen and the shapes tell which."""

import pytest
import torch

from helpers import build
from mupscale_cli.errors import CheckpointError
from mupscale_cli.optimizers.order import names_by_order


def trained(names, *, decay=True):
    """Return the config, the groups and the states of an AdamW that trains some parameters of a tiny Llama."""
    model = build("Llama-untied")
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    shapes = {name: parameter for name, parameter in model.named_parameters() if name in names}
    matrices = [name for name, parameter in shapes.items() if parameter.dim() > 1 or not decay]
    others = [name for name in shapes if name not in matrices]
    order = [*matrices, *others]
    groups = [({}, list(range(len(matrices)))), ({}, list(range(len(matrices), len(order))))]
    states = {number: {"exp_avg": torch.zeros_like(shapes[name])} for number, name in enumerate(order)}
    return config, groups if decay else groups[:1], states, order


@pytest.mark.parametrize("decay", [True, False])
def test_shapes_tell_which_parameters_are_trained(decay):
    names = ["model.embed_tokens.weight", "lm_head.weight"]  # of the same shape, and all of it
    config, groups, states, order = trained(names, decay=decay)
    assert names_by_order(config, groups, states) == dict(enumerate(order))


def test_a_frozen_model_whose_shapes_do_not_tell_is_named_as_such():
    config, groups, states, _ = trained(["model.layers.1.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"])
    with pytest.raises(CheckpointError, match=r"the others were frozen") as refusal:
        names_by_order(config, groups, states)
    assert "--optimizer none" in refusal.value.hint


def test_more_parameters_than_the_model_has_are_no_frozen_ones():
    config, groups, states, _ = trained(["lm_head.weight"])
    with pytest.raises(CheckpointError, match="but the trainer of transformers makes"):
        names_by_order(config, [({}, range(100)), groups[1]], states)
