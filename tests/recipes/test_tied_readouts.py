"""Readouts that share the embedding compute the same, whatever the names of their classes are."""

import json

import pytest
import torch
import transformers

from helpers import MODELS, randomize, save_model
from mupscale_cli.tasks.widen import widen

# Classes whose small models are untied, or have tied readouts only by their default.
TIED = (
    "ShieldGemma2-images",  # a classifier that reads the logits of two tokens
    *("DeepseekV4-untied", "Rwkv-untied", "Git-images", "ImageGPT", "Kyutai", "UltraVBert", "Pix2Struct"),
    *("Emu3-images", "Fuyu-images", "MuseGlimmer-images"),
)
FAST = ("ShieldGemma2-images", "Rwkv-untied", "Git-images", "Pix2Struct")
# Models without the readout of another class that has one: the states themselves are their output.
BARE = {
    "Emu3Model": "Emu3-images",
    "FuyuModel": "Fuyu-images",
    "MllamaModel": "Mllama-images",
    "Dots3NoteModel": "Dots3Note-images",
    "GitModel": "Git-images",
    "MuseGlimmerModel": "MuseGlimmer-images",
}
# Growth beyond whole copies of units, where a stream can hold fresh ones.
UNEVEN = {
    "ShieldGemma2-images": {"text.embed": 1.5},
    "Emu3-images": {"text.embed": 1.5},
    "ImageGPT": {"embed": 1.5, "h": 1.5},
    "Kyutai": {"embed": 1.5, "kv": 1.5},
    "UltraVBert": {"text.embed": 1.5},
    "Pix2Struct": {"t": 1.5, "d": 1.5, "e": 1.5},
}


def cases(names):
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


def check(narrow, wide, factor=None, axes=None):
    found = widen(narrow, wide, factor, axes, dtype="float64")
    assert found.verification.agrees, found.verification
    assert found.verification.max_rel < 1e-12
    return found.plan


def tied(tmp_path, case):
    return save_model(tmp_path / "narrow", case, dtype=torch.float64, tie_word_embeddings=True)


@pytest.mark.parametrize("case", cases(TIED))
def test_a_readout_that_shares_the_embedding_is_divided(case, tmp_path):
    plan = check(tied(tmp_path, case), tmp_path / "wide", 2)
    assert plan.tie == plan.recipe.tie.ways[0]


@pytest.mark.parametrize("case", cases(UNEVEN))
def test_a_readout_that_shares_the_embedding_is_divided_by_the_copies_of_uneven_growth(case, tmp_path):
    check(tied(tmp_path, case), tmp_path / "wide", axes=UNEVEN[case])


@pytest.mark.parametrize("name", cases(BARE))
def test_states_that_no_readout_of_their_class_reads_are_not_divided(name, tmp_path):
    _, config_class, settings = MODELS[BARE[name]]
    tied = {"tie_word_embeddings": True}
    parts = {key: {**settings[key], **tied} for key in settings.keys() & {"text_config"}}
    config = getattr(transformers, config_class)(**{**settings, **parts, **tied})
    config._experts_implementation = "eager"
    randomize(getattr(transformers, name)(config).double()).save_pretrained(tmp_path / "narrow")
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["tie_word_embeddings"]
    check(tmp_path / "narrow", tmp_path / "wide", 2)
