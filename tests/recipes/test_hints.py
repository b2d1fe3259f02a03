"""A refusal at a factor that is not whole proposes a growth that can be planned, for every built-in recipe."""

import re

import pytest

from helpers import MODELS
from mupscale_cli.errors import PlanError
from mupscale_cli.tasks.options import parse_axes, parse_factor
from mupscale_cli.tasks.planning import plan_widening
from small_models.established import ONLY_NAMES

LINKED = ("Qwen2VL-images", "ColQwen2", "Vilt-tied", "DPT-depths")  # what one of their axes needs, others need as well
SEVERAL = ("Gemma3nText-tied", "EmbeddingGemma2", "VoxtralRealtime-tied")  # several axes need another factor
UNIT = ("CodeGen-tied",)  # 1.5 times one of their sizes leaves a fraction of a unit
QUICK = ("Llama-tied", "Bert-tied", "Fuyu-images", *LINKED, *SEVERAL, *UNIT)


def proposed(hint):
    """Return the factor and the axes of the options that a hint proposes."""
    options = re.search(r"use `(--(?:factor|axis) [^`]*)`", hint)[1]
    factors = re.findall(r"--factor (\S+)", options)
    return {
        "factor": parse_factor(factors[0]) if factors else None,
        "axes": parse_axes(re.findall(r"--axis (\S+)", options)),
    }


@pytest.mark.parametrize(
    "case",
    [
        *QUICK,
        *(pytest.param(case, marks=pytest.mark.slow) for case in MODELS if case not in {*QUICK, *ONLY_NAMES}),
    ],
)
@pytest.mark.parametrize("factor", [1.5, 1.3])
def test_the_growth_of_a_hint_can_be_planned(case, factor, saved):
    try:
        plan = plan_widening(saved(case), factor=factor)
    except PlanError as refusal:
        plan = plan_widening(saved(case), **proposed(refusal.hint))
    assert plan.factors


@pytest.mark.parametrize(("case", "axes"), [("Vilt-tied", {"embed": 2}), ("DPT-depths", {"h": 2, "n": 2})])
def test_a_hint_about_links_leads_to_no_axis_that_refuses(case, axes, saved):
    """One axis of a link has a whole factor, and the others would need it."""
    with pytest.raises(PlanError, match="linked axes do not match") as refused:
        plan_widening(saved(case), factor=1.5, axes=axes)
    assert plan_widening(saved(case), **proposed(refused.value.hint)).factors


def test_a_hint_in_python_has_arguments(saved):
    with pytest.raises(PlanError) as refused:
        plan_widening(saved("Bert-tied"), factor=1.5)
    assert 'use `factor=1.5, axes={"embed": 2, "h": 2}`' in str(refused.value)


def test_a_model_without_encoders_is_not_refused_because_of_them(saved):
    with pytest.raises(PlanError, match="the norms of queries and keys share the eps"):
        plan_widening(saved("EmbeddingGemma2", vision_config=None), axes={"text.embed": 1.5})


def test_a_message_names_the_sizes_of_an_axis_that_has_several(saved):
    with pytest.raises(PlanError, match=r"`n` has different sizes in different tensors \(8, 12, 16, 20\)"):
        plan_widening(saved("DPT-depths"), factor=1.5)
