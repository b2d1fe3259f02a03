"""Comparing the outputs of a wide model with those of the narrow one."""

import math

import torch

from mupscale_cli.infer.differences import output_error, outputs_error, relative_error


def test_a_model_without_a_head_may_return_its_widened_units():
    units = torch.randn(2, 5, 6, dtype=torch.float64)
    assert output_error(units, units.repeat_interleave(2, -1)) == 0
    assert output_error(units, units.unflatten(-1, (2, 3)).repeat_interleave(2, 2).flatten(2)) == 0
    assert output_error(units, torch.cat([units, units[..., :1].expand(-1, -1, 6)], -1)) == math.inf
    assert output_error(units, units[:, :4]) is None
    fresh = torch.zeros(*units.shape[:-1], 3, dtype=units.dtype)
    assert output_error(units, torch.cat([units, fresh], -1)) == 0
    assert output_error(units, torch.cat([2 * units, fresh], -1)) > 0.1
    assert output_error(units, 2 * units.repeat_interleave(2, -1)) > 0.1


def test_every_output_counts():
    states, pooled = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    narrow = {"last_hidden_state": states, "pooler_output": pooled}
    wide = {name: value.repeat_interleave(2, -1) for name, value in narrow.items()}
    assert outputs_error(narrow, wide) == 0
    assert outputs_error(narrow, {**wide, "pooler_output": 2 * wide["pooler_output"]}) > 0.1
    assert outputs_error(narrow, {**wide, "pooler_output": pooled[:, :3]}) == (
        "the output `pooler_output` has the shape (2, 3), expected (2, 6)"
    )
    assert outputs_error(narrow, {"last_hidden_state": states}) == "the wide model has no output `pooler_output`"


def test_more_classes_or_objects_are_no_copies_of_units():
    logits = torch.randn(2, 5, 6, dtype=torch.float64)
    for dim in (1, 2):
        wide = logits.repeat_interleave(2, dim)
        assert "has the shape" in str(outputs_error({"logits": logits}, {"logits": wide}))
        assert outputs_error({"router_logits.0": logits}, {"router_logits.0": wide}) == 0


def test_copies_in_vectors_of_length_1_are_smaller():
    units = torch.nn.functional.normalize(torch.randn(3, 6, dtype=torch.float64), dim=-1)
    wide = torch.nn.functional.normalize(units.repeat_interleave(3, -1), dim=-1)
    assert output_error(units, wide) < 1e-15
    assert output_error(2 * units, wide) > 0.1
    assert output_error(units, torch.nn.functional.normalize(wide.abs(), dim=-1)) > 0.1


def test_masked_scores_agree_where_both_are_masked():
    scores = torch.tensor([1.0, -math.inf, 2.0])
    assert relative_error(scores, torch.tensor([1.0, -math.inf, 2.5])) == 0.25
    assert relative_error(scores, torch.tensor([1.0, 3.0, 2.0])) == math.inf
    assert relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, -math.inf])) == math.inf
    low = torch.finfo(torch.float32).min
    assert relative_error(torch.tensor([1.0, low, 2.0]), torch.tensor([1.0, low, 2.5])) == 0.25
    assert relative_error(torch.tensor([1.0, low]), torch.tensor([1.0, 3.0])) == math.inf
    assert relative_error(torch.tensor([math.nan]), torch.tensor([math.nan])) == math.inf
