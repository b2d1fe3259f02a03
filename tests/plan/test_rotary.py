"""Heads that grow under every rule for rotary frequencies keep the frequencies of their old pairs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from helpers import save_model
from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.errors import SizeError
from mupscale_cli.plan.copies import Axis
from mupscale_cli.plan.rotary import rotary_keys
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification.precision import everything_in

EXTRA = {  # settings that a kind needs
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512},
    "proportional": {"factor": 2.0},
    "longrope": {"factor": 4.0, "original_max_position_embeddings": 512},
    "yarn": {"factor": 4.0},
}


def changed(config, size, factor):
    """Return a Llama config with heads `factor` times as large."""
    axes = {rule.name: Axis(rule.name, 4) for rule in load_recipe("llama").axes}
    axes["d"] = Axis("d", size, rotary="halves", fresh=size * (factor - 1))
    wide = {**config, "head_dim": size * factor, "rope_parameters": dict(config["rope_parameters"])}
    for key, value in rotary_keys(load_recipe("llama"), axes, config).items():
        section, _, name = key.rpartition(".")
        (wide[section] if section else wide)[name] = value
    return wide


def frequencies(config, kind, length=None):
    """Return the inverse frequency of every pair of units, as transformers computes it, in float64."""
    with everything_in(torch.float64):
        return ROPE_INIT_FUNCTIONS[kind](LlamaConfig(**config), "cpu", seq_len=length)[0]


@given(st.data())
def test_old_pairs_keep_their_frequencies(data):
    kind = data.draw(st.sampled_from(sorted(EXTRA)))
    pairs, factor = data.draw(st.integers(2, 64)), data.draw(st.integers(2, 5))
    fraction = data.draw(st.sampled_from([1.0, 0.25, 0.4, 0.5, 0.8])) if kind != "longrope" else 1.0
    rope = {"rope_type": kind, "rope_theta": 1e4, "partial_rotary_factor": fraction, **EXTRA[kind]}
    if kind == "longrope":
        numbers = st.lists(st.floats(1, 60), min_size=pairs, max_size=pairs)
        rope |= {"short_factor": data.draw(numbers), "long_factor": data.draw(numbers)}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = data.draw(st.integers(16, 65536))
        rope |= data.draw(st.sampled_from([{}, {"beta_fast": 20.0, "beta_slow": 2.0}, {"truncate": False}]))
    config = {"head_dim": 2 * pairs, "rope_parameters": rope, "max_position_embeddings": 131072}
    if kind != "proportional" and (int(2 * pairs * fraction) % 2 or int(2 * pairs * fraction) < 4):
        return  # an odd number of units is refused, see below
    wide = changed(config, 2 * pairs, factor)
    for length in (None, 4096) if kind == "longrope" else (None,):
        old, new = frequencies(config, kind, length), frequencies(wide, kind, length)
        assert len(new) == factor * len(old)
        torch.testing.assert_close(new[::factor], old, rtol=1e-9, atol=0)


def test_rounding_counts_the_units_that_the_changed_fraction_turns():
    """A quarter of 212 units are 53; twice the 26 that turned before are 52, whose bounds are rounded differently."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.25,
        "original_max_position_embeddings": 18,
    }
    config = {"head_dim": 106, "rope_parameters": {**rope, "factor": 4.0}, "max_position_embeddings": 131072}
    old, new = frequencies(config, "yarn"), frequencies(changed(config, 106, 2), "yarn")
    torch.testing.assert_close(new[::2], old, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("rope", "reason"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "beyond the trained length"),
        ({"rope_type": "axial"}, "type `axial` depend on its size is unknown"),
        ({"rope_type": "default", "partial_rotary_factor": 0.15}, "an odd number of its units, 9"),
        ({"rope_type": "yarn", "factor": 4.0}, "needs `rope_theta`"),
        (
            {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4, "original_max_position_embeddings": 1024}},
            "rounds the pairs between which it interpolates",
        ),
    ],
)
def test_frequencies_that_nothing_keeps_are_refused(rope, reason):
    with pytest.raises(SizeError, match=reason) as caught:
        changed({"rope_parameters": rope}, 64, 3)
    assert "`--axis d=1`" in caught.value.hint


def test_other_axes_do_not_depend_on_frequencies(tmp_path):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    plan = plan_widening(save_model(tmp_path / "narrow", rope_parameters=rope), factor=2)
    assert not [change for change in plan.config_changes if change.key.startswith("rope")]


def test_norms_that_subtract_the_mean_and_neighboring_pairs_do_not_go_together(saved):
    with pytest.raises(SizeError, match="subtracts the mean") as caught:
        plan_widening(saved("Cohere-untied", use_qk_norm=True), axes={"d": 2})
    assert "keep its size" in caught.value.hint


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "factor": 2.0,
            "original_max_position_embeddings": 12,
            "short_factor": [1.0, 1.5, 2.0, 3.0],
            "long_factor": [2.0, 3.0, 4.0, 5.0],
        },
    ],
)
def test_the_function_is_kept(rope, tmp_path):
    sizes = {"rope_parameters": rope, "max_position_embeddings": 64}
    source = save_model(tmp_path / "narrow", dtype=torch.float64, **sizes)
    assert widen(source, tmp_path / "wide", axes={"d": 3}).verification.max_rel < 1e-13
