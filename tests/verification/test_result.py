"""Differences between tensors, and the criteria for agreement."""

import json
import math

import pytest
import torch

from mupscale_cli.verification.result import Comparison, FunctionCheck, compare


@pytest.mark.parametrize(
    ("narrow", "wide", "max_abs", "max_rel"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0, 0.0),
        ([1.0, -4.0], [1.5, -4.0], 0.5, 0.125),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0),
        ([0.0], [1e-30], 1e-30, math.inf),
        ([1.0, math.nan], [1.0, 2.0], math.inf, math.inf),
        ([1.0, 2.0], [math.nan, 2.0], math.inf, math.inf),
        ([math.nan], [math.nan], math.inf, math.inf),
        ([math.inf], [math.inf], math.inf, math.inf),
        ([1.0], [1.0, 1.0], math.inf, math.inf),
        ([], [], math.inf, math.inf),
    ],
)
def test_compare(narrow, wide, max_abs, max_rel):
    narrow, wide = (torch.tensor(values, dtype=torch.float64) for values in (narrow, wide))
    assert compare("x", narrow, wide) == Comparison("x", max_abs, max_rel)


def result(*errors, first=None, allowed=1e-3):
    comparisons = tuple(Comparison(f"output {i}", error, error) for i, error in enumerate(errors))
    return FunctionCheck(comparisons, 1, first, first, allowed, "because", False, "float64", "cpu", "numbers")


@pytest.mark.parametrize(
    ("found", "agrees"),
    [
        (result(1e-4, 1e-3), True),
        (result(1e-4, 2e-3), False),
        (result(1e-4, math.nan), False),
        (result(math.nan, 1e-4), False),
        (result(math.inf), False),
        (result(1e-4, first=Comparison("layer", 1.0, 1.0)), False),
    ],
)
def test_agreement_requires_every_output_and_module_within_the_tolerance(found, agrees):
    assert found.agrees is agrees
    assert json.loads(json.dumps(found.as_record(), allow_nan=False))["agrees"] is agrees


def test_the_largest_difference_keeps_nan():
    assert math.isnan(result(math.nan, 1.0).max_rel)
    assert math.isnan(result(1.0, math.nan).max_rel)
    assert result(1.0, 2.0, 0.5).max_rel == 2.0
