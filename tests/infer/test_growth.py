"""Words of drafts with which axes grow to any size: what norms do, where eps is, and the proof of each growth."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import nn

from mupscale_cli import widen
from mupscale_cli.architecture.loading import load_recipe
from mupscale_cli.errors import MupscaleError
from mupscale_cli.infer import growth
from mupscale_cli.infer.infer import infer, infer_user_model
from mupscale_cli.infer.layouts import Choice
from mupscale_cli.infer.norms import _norm_of
from mupscale_cli.infer.tiny import tiny_model
from mupscale_cli.infer.words import Norm, Split
from mupscale_cli.plan.request import Size
from mupscale_cli.tasks.planning import plan_widening


class OffsetNorm(nn.Module):
    """An RMSNorm with the gains 1 + w."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Scale(OffsetNorm):
    """Gains without a norm."""

    def forward(self, x):
        return x * self.weight


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.RMSNorm(6), Norm("rms", 0, None)),
        (nn.LayerNorm(6), Norm("layer", 0, None)),
        (OffsetNorm(6), Norm("rms", 1, None)),
        (Scale(6), None),
        (nn.Linear(6, 6), None),
        (nn.Identity(), None),
        (nn.BatchNorm1d(6), None),
    ],
)
def test_norms_are_told_apart_by_what_they_compute(module, expected):
    module = module.double()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    assert _norm_of(module) == expected


def test_a_power_is_split_into_that_of_the_copies_and_that_of_the_ratio():
    half = Fraction(1, 2)
    query = Choice((0,), powers=(("d", -half),))
    assert Split(Fraction(-1), half).applied(query, "d").powers == (("d", Fraction(-1)), ("#d", half))
    assert Split(Fraction(0), None).applied(query, "d").powers == ()
    assert Split(Fraction(-1), half, power=Fraction(1)).applied(query, "d") == query  # another power is meant


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    file = tmp_path_factory.mktemp("drafts") / "llama.yaml"
    inferred = infer("llama")
    file.write_text(inferred.text)
    return inferred, file


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_draft_grows_to_any_size_as_the_built_in_recipe(llama, tmp_path, tied):
    source = tiny_model("llama", overrides={"tie_word_embeddings": tied}).save(tmp_path / "narrow")
    for amounts in (
        {"embed": Size(72), "kv": Size(3), "g": Size(3), "ffn": Size(50)},
        {"d": Size(16), "layers": Size(6)},
        {"embed": Size(60), "kv": Size(3), "d": Size(24), "ffn": 2, "layers": 2},
    ):
        plans = [plan_widening(source, axes=amounts, recipe=name) for name in ("llama", llama[1])]
        tensors = [{t.target.name: (t.source.name, t.target.shape, t.parts) for t in p.tensors} for p in plans]
        assert tensors[0] == tensors[1]
        assert plans[0].config == plans[1].config


def test_the_proof_names_every_growth_and_wrong_words_fail_it(llama, tmp_path, monkeypatch):
    inferred, file = llama
    assert {"embed x1.5", "kv x1.5", "g x1.5", "ffn x1.5", "d x2", "layers x2"} <= set(inferred.errors)
    assert inferred.worst < 1e-12
    with pytest.raises(MupscaleError, match="multiple of num_attention_heads"):
        plan_widening(tiny_model("llama").save(tmp_path / "narrow"), axes={"embed": Size(50)}, recipe=file)

    found = growth.find_norms

    def mistaken(*arguments):
        norms = found(*arguments)
        return replace(norms, words={pattern: replace(norm, kind="layer") for pattern, norm in norms.words.items()})

    monkeypatch.setattr(growth, "find_norms", mistaken)
    assert not [label for label in infer("llama").errors if label.startswith("embed x1.5")]


def test_a_norm_whose_output_is_the_stream_lets_it_grow_by_whole_factors_only(tmp_path):
    file = tmp_path / "bert.yaml"
    file.write_text(infer("bert", "masked-lm").text)
    source = tiny_model("bert", "masked-lm").save(tmp_path / "narrow")
    with pytest.raises(MupscaleError, match="the axis h grows by whole factors only"):
        widen(source, tmp_path / "wide", axes={"embed": Size(72), "h": Size(6)}, recipe=file)
    assert not (tmp_path / "wide").exists()
    assert load_recipe(file).depths == ()  # no block under such a norm is the identity
    grown = widen(source, tmp_path / "wide", axes={"embed": 2, "h": 2, "ffn": Size(50)}, recipe=file, dtype="float64")
    assert grown.verification.max_rel < 1e-12


def test_a_norm_behind_a_layer_without_a_name_of_its_own_holds_up_no_other_axis(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "config = {'inputs': 5, 'width': 12, 'inner': 20}\n\n\n"
        "def build(c):\n"
        "    w, f = c['width'], c['inner']\n"
        "    return nn.Sequential(nn.Linear(5, w), nn.LayerNorm(w), nn.Linear(w, f), nn.GELU(), nn.Linear(f, 3))\n"
    )
    inferred = infer_user_model(f"{tmp_path / 'net.py'}:build")
    assert [label for label in inferred.errors if label.startswith("inner_axis x1.5")]
    assert not [label for label in inferred.errors if label.startswith("width_axis x1.5")]
