"""The model card: a section that depends on the record alone, within the text of others."""

import json
import shlex

import pytest
import yaml

from cli_runner import run
from mupscale_cli.errors import CheckpointError, HubError
from mupscale_cli.record.reading import check_record
from mupscale_cli.tasks.card import BEGIN, END, card_section, has_section, reproducing_command, with_section
from mupscale_cli.tasks.hub_card import CardFacts, inherited_facts, make_card

SECTION = f"{BEGIN}\n\nnew\n\n{END}"
FACTS = CardFacts("org/tiny", "transformers", {"license": "mit"})


def metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize(
    ("before", "had_one", "after"),
    [
        ("", False, f"{SECTION}\n"),
        ("Text.\n\n\n", False, f"Text.\n\n{SECTION}\n"),
        (f"Above.\n\n{BEGIN}\nold\n{END}\n\nBelow.\n", True, f"Above.\n\n{SECTION}\n\nBelow.\n"),
    ],
)
def test_a_section_is_added_or_replaced(before, had_one, after):
    assert has_section(before) is had_one
    assert with_section(before, SECTION) == after
    assert has_section(after)
    assert with_section(after, SECTION) == after


def test_markers_in_the_wrong_order_are_not_a_section():
    card = f"{END} {BEGIN}"
    assert not has_section(card)
    assert with_section(card, SECTION) == f"{card}\n\n{SECTION}\n"


def test_a_new_card_has_a_title_and_metadata():
    card = make_card(None, SECTION, FACTS, "wide")
    assert metadata(card) == {
        "base_model": "org/tiny",
        "base_model_relation": "finetune",
        "license": "mit",
        "library_name": "transformers",
        "tags": ["mupscale", "model-growth"],
    }
    assert card.endswith(f"# wide\n\n{SECTION}\n")
    assert metadata(make_card(" \n", SECTION, CardFacts(), "wide")) == {"tags": ["mupscale", "model-growth"]}


def test_a_second_widening_replaces_the_section():
    first = make_card("---\nlicense: bsd\nextra: {a: 1}\n---\n# Mine\n", SECTION, CardFacts("org/old"), "wide")
    again = make_card(first, SECTION, FACTS, "wide")
    found = metadata(again)
    assert (found["base_model"], found["license"], found["extra"]) == ("org/tiny", "bsd", {"a": 1})
    assert make_card(again, SECTION, FACTS, "wide") == again


def test_a_card_without_metadata_gets_them():
    card = make_card("# Mine\n", SECTION, FACTS, "wide")
    assert metadata(card)["license"] == "mit"
    assert "# Mine\n\n" + BEGIN in card


def test_an_invalid_card_is_refused():
    with pytest.raises(HubError, match="existing model card has invalid metadata"):
        make_card("---\nlicense: [\n---\n", SECTION, FACTS, "wide")


@pytest.mark.parametrize(
    ("card", "facts"),
    [
        (None, {}),
        ("# no metadata\n", {}),
        ("---\nlicense: [\n---\n", {}),
        (
            "---\nlicense: llama3\nlicense_link: LICENSE\ntags: [x]\n---\n",
            {"license": "llama3", "license_link": "LICENSE"},
        ),
    ],
)
def test_a_license_is_inherited_and_never_invented(card, facts):
    assert inherited_facts(card) == facts


WAYS = {
    "plain": ["-f", "2"],
    "axes": ["-f", "1", "-a", "ffn=3", "-a", "g=2"],
    "untied": ["-f", "2", "--tie", "untie"],
    "noise": ["-f", "2", "--noise", "0.1", "--noise-mode", "preserving", "--noise-scale", "rms", "--seed", "7"],
    "net2net": ["-f", "3", "--method", "net2net", "--seed", "5"],
    "hyperclone": ["-f", "2", "--method", "hyperclone", "--snr", "20", "--seed", "3"],
    "warmstart": ["-f", "2", "--method", "warmstart", "--shrink", "0.3", "--seed", "2"],
}


@pytest.mark.parametrize("way", WAYS)
def test_the_command_reproduces_the_output(way, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    narrow = str(saved("Llama-tied"))
    assert run("widen", narrow, *WAYS[way], "-o", "first", "--no-verify").code == 0
    record = json.loads((tmp_path / "first" / "mupscale.json").read_text())
    command = shlex.split(reproducing_command(record, "second"))
    assert command[:3] == ["mupscale", "widen", "CHECKPOINT"]
    result = run("widen", narrow, *command[3:], "--no-verify")
    assert result.code == 0, result.err
    for name in ("model.safetensors", "config.json", "mupscale.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert str(tmp_path) not in card_section(record, "second")


FIGURES = {
    "dtype": "float64",
    "device": "cpu",
    "inputs": "2 sequences",
    "tolerance": 1e-13,
    "tolerance_reason": "why",
    "modules_compared": 3,
    "comparisons": [{"what": "logits", "max_abs": 1e-15, "max_rel": "nan"}],
    "worst_module": {"what": "norm", "max_abs": 1e-14, "max_rel": 2e-15},
    "keeps_function": True,
    "rounding": None,
    "unperturbed": None,
}


def verified(**parts):
    return {"function": None, "training": None, "weights": None, "config": None, "files": None, **parts}


@pytest.mark.parametrize(
    ("verification", "says"),
    [
        (None, ["**Not verified**"]),
        (
            verified(function=FIGURES),
            ["float64 on 2 sequences and compared 3 modules", "| logits | nan | 1.0e-15 |", "(`norm`)", "= why"],
        ),
        (verified(function={**FIGURES, "keeps_function": False}), ["changes the function on purpose"]),
        (verified(function={**FIGURES, "keeps_function": False, "unperturbed": FIGURES}), ["without its noise"]),
        (
            verified(function={**FIGURES, "rounding": {"max_rel": 3e-4}, "rounded_tensors": 2}),
            ["2 tensors were rounded", "3.0e-04"],
        ),
        (verified(weights={"tensors": 34}), ["every byte of 34 tensors", "have not been run"]),
        (verified(function=FIGURES, config={"keys": 31}), ["31 keys of config.json"]),
        (
            verified(function=FIGURES, training={"steps": 20, "optimizer": "adamw", "max_rel": 1e-12}),
            ["20 steps of adamw", "1.0e-12"],
        ),
    ],
)
def test_the_card_says_how_it_was_verified(verification, says, saved, tmp_path):
    record = made(saved, tmp_path)
    section = card_section({**record, "verification": verification}, "wide")
    for text in says:
        assert text in section, section


@pytest.mark.parametrize(
    ("way", "is_same"), [("plain", True), ("noise", True), ("net2net", True), ("warmstart", False)]
)
def test_the_card_says_what_the_model_is_for(way, is_same, saved, tmp_path):
    out = tmp_path / "wide"
    assert run("widen", str(saved("Llama-tied")), *WAYS[way], "-o", str(out), "--no-verify").code == 0
    section = card_section(json.loads((out / "mupscale.json").read_text()), "wide")
    assert "starting point for further training" in section
    assert ("computes the same function as its source" in section) is is_same
    assert ("not a model to use as it is" in section) is not is_same


def made(saved, tmp_path):
    out = str(tmp_path / "wide")
    assert run("widen", str(saved("Llama-tied")), "-f", "4", "-o", out, "--no-verify").code == 0
    return json.loads((tmp_path / "wide" / "mupscale.json").read_text())


def test_the_card_has_the_multipliers_of_adamw(saved, tmp_path):
    section = card_section(made(saved, tmp_path), "wide")
    assert "| `model.embed_tokens.weight` | 1 | 1/4 | 1 | 4 |" in section
    assert "`model.layers.*.self_attn.q_proj.weight` | 1/4 | 1/4 | 4 | 1 |" in section


def test_a_damaged_record_is_one_message(saved, tmp_path):
    record = made(saved, tmp_path)
    for damage in (
        {"rules": [{}]},
        {"axes": {"embed": {"factor": 2}}},
        {"parameters": {"before": 1}},
        {"verification": {}},
    ):
        with pytest.raises(CheckpointError, match=r"damaged: `\w+.*` is missing"):
            check_record({**record, **damage}, tmp_path)
