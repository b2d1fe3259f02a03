"""Test the JSON document of a sweep, and how `hparams` uses it."""

import json

import pytest

from cli_runner import run
from mupscale_cli.tasks.widen import widen


def test_hparams_takes_values_from_the_sweep(swept, wide):
    file = swept[0].parent / "narrow-sweep" / "sweep.json"
    best = json.loads(file.read_text())["recommendation"]
    result = run("hparams", wide, "--from-sweep", str(file), "--json")
    document = json.loads(result.out)
    assert document["optimizer"] == "adamw"
    sources = document["narrow"].pop("sources")
    assert document["narrow"] == {"lr": best["lr"], "weight_decay": 0.1, "eps": 1e-8, "betas": [0.9, 0.95]}
    assert {sources[field] for field in ("optimizer", *document["narrow"])} == {"sweep"}
    assert document["sweep"]["noise"] == best["noise"]
    assert f"the sweep found lr {best['lr']:g}" in result.err
    assert ("; widen with `--noise" in result.err) == bool(best["noise"])  # the model was widened without


def test_options_override_the_sweep(swept, wide):
    file = swept[0].parent / "narrow-sweep" / "sweep.json"
    result = run("hparams", wide, "--from-sweep", str(file), "--lr", "0.5", "--betas", "0.8,0.9", "--json")
    narrow = json.loads(result.out)["narrow"]
    assert (narrow["lr"], narrow["betas"], narrow["weight_decay"]) == (0.5, [0.8, 0.9], 0.1)
    assert "`--lr` sets 0.5" in result.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not valid JSON"),
        ("[]", "was not written by `mupscale sweep`"),
        ('{"loss": 1}', "was not written by `mupscale sweep`"),
        ('{"schema_version": 9, "grid": {}, "recommendation": {}}', "has version 9"),
        ('{"schema_version": 1, "grid": {}, "recommendation": null}', "has no recommendation"),
        ('{"schema_version": 1, "grid": {}, "recommendation": {}}', "is damaged"),
    ],
)
def test_invalid_sweep_file_is_refused(content, message, wide, tmp_path):
    file = tmp_path / "sweep.json"
    if content is not None:
        file.write_text(content)
    result = run("hparams", wide, "--from-sweep", str(file))
    assert result.code == 2
    assert message in result.err


def test_hparams_needs_a_learning_rate(saved, tmp_path):
    widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)
    result = run("hparams", str(tmp_path / "wide"))
    assert result.code == 2
    assert "the learning rate of the narrow run is missing" in result.err
