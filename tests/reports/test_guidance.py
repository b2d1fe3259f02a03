"""The figures of a plan's growth, and what is said of them."""

import json

import pytest

from cli_runner import run
from mupscale_cli.reports.guidance import guidance
from mupscale_cli.tasks.planning import plan_widening

EMBEDDING = 50 * 48
ATTENTION = 48 * 32 * 2 + 48 * 16 * 2  # queries and output of 4 heads of 8, keys and values of 2
FFN = 3 * 48 * 40


@pytest.mark.parametrize("case", ["Llama-untied", "Llama-tied"])
def test_flops_are_two_for_each_weight_that_multiplies(case, saved):
    """The embedding is a table; tied to the readout it multiplies all the same."""
    found = guidance(plan_widening(saved(case), factor=2))
    narrow = 2 * (ATTENTION + FFN) + EMBEDDING  # two layers and the readout
    assert found.flops == (2 * narrow, 2 * (4 * 2 * (ATTENTION + FFN) + 2 * EMBEDDING))
    assert found.growth == pytest.approx(found.parameters[1] / found.parameters[0])


def test_large_growths_are_warned_of_and_small_ones_are_not(saved):
    large, small = (guidance(plan_widening(saved("Llama-untied"), axes={"ffn": factor})) for factor in (4, 2))
    assert large.growth > 2 > small.growth
    assert any("training from scratch wins" in line for line in large.advice)
    assert not any("training from scratch wins" in line for line in small.advice)


def test_copies_without_noise_are_told_what_they_lack(saved):
    def told(**options):
        return any(
            "never separate" in line
            for line in guidance(plan_widening(saved("Llama-untied"), factor=2, **options)).advice
        )

    assert told()
    assert not told(noise=0.1)
    assert not told(method="warmstart")


def test_a_dry_run_shows_it(saved):
    path = str(saved("Llama-untied"))
    text = run("widen", path, "-f", "2", "--dry-run").out
    assert "FLOPs a token forward" in text
    assert "arXiv 2605.13405" in text
    document = json.loads(run("widen", path, "-f", "2", "--noise", "0.1", "--dry-run", "--json").out)
    assert document["growth"]["parameters"] > 3
    assert document["growth"]["flops_per_token"]["after"] > document["growth"]["flops_per_token"]["before"]
    assert document["perturbation"]["size"] == 0.1
