"""Test the built-in trainer of a sweep."""

import json

import numpy as np
import pytest
import torch

from cli_runner import run
from mupscale_cli.sweep.data import read_tokens, split
from mupscale_cli.sweep.settings import Training
from mupscale_cli.sweep.training import evaluate, schedule, train
from mupscale_cli.tasks.widen import widen
from sweeps import SHORT, VOCAB, sweep, words
from training import save_training


def test_losses_without_noise_are_equal_at_every_width(swept):
    """Mapped groups, clipping and the widened state make losses comparable across widths."""
    losses = {}
    for cell in json.loads((swept[0].parent / "narrow-sweep" / "sweep.json").read_text())["cells"]:
        losses.setdefault((cell["noise"], cell["lr"]), []).append(cell["loss"])
    for (noise, _), (two, three) in losses.items():
        assert (two == pytest.approx(three, rel=1e-5)) == (noise == 0)


def test_training_a_widened_checkpoint_follows_the_narrow_run(tokens, tmp_path):
    """Train a narrow checkpoint with its state, and the same checkpoint widened."""
    narrow = save_training(tmp_path / "narrow", "Qwen3-tied", "adamw")
    wide = widen(narrow, tmp_path / "wide", factor=3).output
    data = split(read_tokens(tokens, narrow, VOCAB), 8, tokens)
    training = Training(4, 2, 8, 0.1, clip=0.5, schedule="cosine", warmup=2)
    reports = []
    losses = [
        train(path, training, data, 1e-3, 0, lambda step, loss: reports.append((step, loss))) for path in (narrow, wide)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert [loss for _, loss in reports[:4]] == pytest.approx([loss for _, loss in reports[4:]], rel=1e-5)
    other = train(wide, training, data, 1e-2, 0, lambda *_: None)
    assert other != pytest.approx(losses[1], rel=1e-4)


def test_diverged_trial_is_a_result(tokens, tmp_path, saved):
    result = sweep(
        saved("Llama-untied"),
        "--data",
        tokens,
        *words("--lr 1e-3,1e18 --noise 0 --factor 2"),
        "-o",
        tmp_path / "s",
        "--no-picture",
        *SHORT,
    )
    assert "diverged" in result.out
    assert "recommended for x2 and any other width: lr 0.001, noise 0" in result.out
    assert {t["diverged"] for t in json.loads((tmp_path / "s" / "sweep.json").read_text())["trials"]} == {True, False}
    assert not (tmp_path / "s" / "sweep.png").exists()


def test_state_of_another_optimizer_is_refused(tokens, tmp_path):
    narrow = save_training(tmp_path / "narrow", "Llama-tied", "sgd")
    arguments = (narrow, "--data", tokens, "--lr", "1e-3,2e-3", "--noise", "0", "-f", "2", *SHORT)
    result = run("sweep", *map(str, arguments), "-o", str(tmp_path / "s"))
    assert result.code == 2
    assert "is not Adam's" in result.err
    sweep(*arguments, "--optimizer", "none", "-o", tmp_path / "t")


def test_schedule_warms_up_and_decays():
    constant, cosine = Training(10, warmup=2), Training(10, warmup=2, schedule="cosine")
    assert [schedule(step, constant) for step in (0, 1, 2, 9)] == [0.5, 1, 1, 1]
    assert schedule(2, cosine) == 1
    assert 0.1 < schedule(9, cosine) < 0.2


def test_evaluate_averages_over_all_sequences():
    """Batches are weighted by their number of sequences."""

    class Model(torch.nn.Linear):
        def forward(self, input_ids, labels):  # noqa: ARG002 (transformers' signature)
            return type("Output", (), {"loss": input_ids.float().mean()})

    sequences = np.arange(30).reshape(5, 6)
    assert evaluate(Model(1, 1), sequences, 2) == pytest.approx(sequences.mean())


def test_model_that_is_not_causal_is_refused(tokens, saved, tmp_path):
    result = run("sweep", str(saved("Bert-tied")), "--data", str(tokens), "-o", str(tmp_path / "s"))
    assert result.code == 2
    assert "trains causal language models; `BertForMaskedLM` is not one" in result.err
