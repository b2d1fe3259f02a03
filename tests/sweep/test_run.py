"""Test `mupscale sweep` as a whole: table, document, picture and errors."""

import json
import re
import sys

import pytest
import torch

from cli_runner import run
from sweeps import OWN, SHORT, sweep, words
from training import save_state


def test_sweep_prints_a_table_and_writes_json_and_picture(swept):
    narrow, arguments, result = swept
    folder = narrow.parent / "narrow-sweep"
    document = json.loads((folder / "sweep.json").read_text())
    assert document["complete"]
    assert len(document["trials"]) == 16
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    best = document["recommendation"]
    assert f"recommended for x8 and any other width: lr {best['lr']:g}, noise {best['noise']:g}" in result.out
    noise = f" --noise {best['noise']:g}" if best["noise"] else ""
    assert f"  mupscale widen {narrow} --factor 8{noise}\n" in result.out
    assert f"  mupscale hparams {narrow}-x8 --from-sweep {folder / 'sweep.json'}\n" in result.out
    assert result.out.count("*") == 3  # one per width, one in the legend
    assert re.search(r"0\.001 +\d\.\d{4}±\.\d{3}", result.out)
    assert len(re.findall(r"^\[\d+/16\] x[23] lr ", result.err, re.MULTILINE)) == 16
    assert not (folder / "checkpoints").exists()
    assert json.loads(sweep(*arguments, "--json").out) == document  # all trials are finished


def test_single_file_is_swept(tokens, tmp_path, saved):
    narrow = tmp_path / "one.safetensors"
    narrow.write_bytes((saved("Llama-untied") / "model.safetensors").read_bytes())
    (tmp_path / "one.config.json").write_bytes((saved("Llama-untied") / "config.json").read_bytes())
    result = sweep(narrow, "--data", tokens, "--lr", "1e-3,2e-3", "--noise", "0.1", "-f", "2", *SHORT)
    assert f"wrote {tmp_path / 'one-sweep' / 'sweep.json'}" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no training data"),
        (["--data", "nowhere.bin"], "`nowhere.bin` does not exist"),
        (["--factor", "1.5", *OWN], "`--factor` is not a whole factor"),
        (["--factor", "1", *OWN], "nothing is widened"),
        (["--target", "x", *OWN], "`--target` is `x`"),
        (["--lr", "fast", *OWN], "`--lr fast` is not a number"),
        (["--lr", "0", *OWN], "it must be above 0"),
        (["--lr", "nan", *OWN], "it must be above 0"),
        (["--lr-steps", "0", *OWN], "`--lr-steps 0` is not at least 1"),
        (["--noise", "-1", *OWN], "it must be at least 0"),
        (["--noise", "a,b", *OWN], "`--noise a,b` is not a number"),
        (["--noise-mode", "loud", *OWN], "unknown `--noise-mode loud`"),
        (["--noise-scale", "loud", *OWN], "unknown `--noise-scale loud`"),
        (["--seeds", "0", *OWN], "`--seeds 0` is not at least 1"),
        (["--jobs", "0", *OWN], "`--jobs 0` is not at least 1"),
        (["--steps", "0", *OWN], "`--steps 0` is not at least 1"),
        (["--length", "1", *OWN], "`--length 1` is not at least 2"),
        (["--clip", "-1", *OWN], "`--clip -1` is not at least 0"),
        (["--betas", "0.9", *OWN], "is not two numbers"),
        (["--betas", "0.9,1", *OWN], "each must be at least 0 and below 1"),
        (["--eps", "0", *OWN], "`--eps 0` is not between 0 and 1"),
        (["--schedule", "wild", *OWN], "unknown `--schedule wild`"),
        (["--axis", "nothing=2", *OWN], "has no axis `nothing`"),
        (["--command", "train {lr}"], "lacks {checkpoint}"),
        (["--command", "train {checkpoint}"], "lacks {lr}"),
        (["--command", "train {checkpoint} {lr} {epochs}"], "unknown placeholder {epochs}"),
        (["--command", "train 'open"], "is not a valid command line"),
        (["--command", " "], "`--command` is empty"),
        (["--command", "/no/such/program {checkpoint} {lr}"], "cannot start"),
        (["--proxy-steps", "3", *OWN], "`--proxy-steps` has no effect without `--proxy`"),
        (["--proxy", "1", *OWN], "`--proxy 1` is not at least 2"),
        (["--proxy", "2", "--proxy-steps", "-1", *OWN], "is not at least 0"),
        (["--proxy", "3", "--proxy-steps", "0", *OWN], "cannot be divided by 3"),
        (["--proxy", "2", "--proxy-steps", "3", *OWN], "no training data"),
        (["-o", "FILE", *OWN], "is not a directory"),
        (["-o", "FULL", *OWN], "is not empty and not a sweep"),
    ],
)
def test_invalid_input_is_refused(arguments, message, tmp_path, saved):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    places = {"FILE": str(tmp_path / "file"), "FULL": str(tmp_path / "full")}
    output = () if "-o" in arguments else ("-o", str(tmp_path / "s"))
    result = run("sweep", str(saved("Llama-untied")), *(places.get(word, word) for word in arguments), *output)
    assert result.code == 2, result.err
    assert message in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("module", ["matplotlib", "transformers"])
def test_missing_library_is_reported(module, tokens, tmp_path, saved, monkeypatch):
    source = saved("Llama-untied")
    monkeypatch.setitem(sys.modules, module, None)
    result = run(
        "sweep",
        str(source),
        "--data",
        str(tokens),
        *words("--lr-steps 1 --noise 0 -f 2"),
        "-o",
        str(tmp_path / "s"),
        *SHORT,
    )
    assert result.code == 2
    assert re.search(f"{module}, which is not installed", result.err, re.IGNORECASE)
    assert "install the extra `sweep` (`mupscale help install`)" in result.err


@pytest.mark.parametrize(
    ("given", "decay"), [((), 0.1), (("--weight-decay", "0"), 0.0), (("--optimizer", "none"), 0.0)]
)
def test_weight_decay_is_that_of_the_state(given, decay, tokens, tmp_path):
    source = save_state(tmp_path / "narrow", "torch")
    state = torch.load(source / "optimizer.pt")
    for group in state["param_groups"]:
        group["weight_decay"] = 0.1
    torch.save(state, source / "optimizer.pt")
    options = (*words("--lr 1e-3 --noise 0 -f 2 --no-picture"), "-o", tmp_path / "s")
    result = sweep(source, "--data", tokens, *options, *given, *SHORT)
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert document["training"]["weight_decay"] == decay
    assert ("weight decay 0.1, as in" in result.err) == bool(decay)
