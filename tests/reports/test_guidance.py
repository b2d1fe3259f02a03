"""Test the figures of a plan's growth, and the advice on it."""

import json

import pytest

from cli_runner import run
from mupscale_cli.reports.guidance import guidance
from mupscale_cli.tasks.planning import plan_widening

EMBEDDING = 50 * 48
ATTENTION = 48 * 32 * 2 + 48 * 16 * 2  # queries and output of 4 heads of 8, keys and values of 2
FFN = 3 * 48 * 40


@pytest.mark.parametrize("case", ["Llama-untied", "Llama-tied"])
def test_flops_are_two_per_multiplying_weight(case, saved):
    """An embedding table does not multiply, except as a tied readout."""
    growth = guidance(plan_widening(saved(case), factor=2))
    narrow = 2 * (ATTENTION + FFN) + EMBEDDING  # two layers and the readout
    assert growth.flops == (2 * narrow, 2 * (4 * 2 * (ATTENTION + FFN) + 2 * EMBEDDING))
    assert growth.growth == pytest.approx(growth.parameters[1] / growth.parameters[0])


def test_only_large_growths_are_advised_against(saved):
    large, small = (guidance(plan_widening(saved("Llama-untied"), axes={"ffn": factor})) for factor in (4, 2))
    assert large.growth > 2 > small.growth
    assert any("training from scratch wins" in line for line in large.advice)
    assert not any("training from scratch wins" in line for line in small.advice)


def test_copies_without_noise_are_advised_to_add_it(saved):
    def is_advised(**options):
        return any(
            "stay equal until something tells them apart" in line
            for line in guidance(plan_widening(saved("Llama-untied"), factor=2, **options)).advice
        )

    assert is_advised()
    assert not is_advised(noise=0.1)
    assert not is_advised(method="warmstart")


def test_fresh_units_at_zero_are_advised_to_be_moved(saved):
    source = saved("Llama-untied")

    def reasons(**options):
        advice = guidance(plan_widening(source, factor=1.5, **options)).advice
        return [line for line in advice if "have no gradients" in line]

    assert reasons(fresh="zero")
    assert not reasons(fresh="init")


def test_dry_run_prints_the_guidance(saved):
    path = str(saved("Llama-untied"))
    text = run("widen", path, "-f", "2", "--dry-run").out
    assert "FLOPs per token of a forward pass" in text
    assert "arXiv 2605.13405" in text
    document = json.loads(run("widen", path, "-f", "2", "--noise", "0.1", "--dry-run", "--json").out)
    assert document["growth"]["parameters"] > 3
    assert document["growth"]["flops_per_token"]["after"] > document["growth"]["flops_per_token"]["before"]
    assert document["perturbation"]["size"] == 0.1
