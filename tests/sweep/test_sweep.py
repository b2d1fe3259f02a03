"""`mupscale sweep` and what `hparams` makes of it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cli_runner import run
from helpers import build, randomise
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.errors import SweepError
from mupscale_cli.plan import resolve_factors
from mupscale_cli.sweep.command import fill, parse_command
from mupscale_cli.sweep.data import read_tokens, split
from mupscale_cli.sweep.grid import Grid, Point, learning_rates, make_grid
from mupscale_cli.sweep.proxy import ProxyRequest, make_proxy, narrowed_config
from mupscale_cli.sweep.result import Trial, find
from mupscale_cli.sweep.settings import Training
from mupscale_cli.sweep.training import evaluate, schedule, train
from mupscale_cli.tasks.planning import choose_recipe, plan_widening
from mupscale_cli.tasks.widen import widen
from training import save_training

VOCAB = 50
SHORT = ("--steps", "3", "--batch-size", "2", "--length", "8")
# A trainer whose loss is known: a parabola in log2(lr), a little better with noise 0.1 and with more width.
TRAINER = """
import argparse, json, math, os, sys, time
parser = argparse.ArgumentParser()
for name in ("--init", "--out", "--log"):
    parser.add_argument(name)
for name in ("--lr", "--noise", "--factor", "--seed", "--sleep", "--limit"):
    parser.add_argument(name, type=float, default=0)
args = parser.parse_args()
assert os.path.exists(os.path.join(args.init, "mupscale.json")), args.init
assert os.path.isdir(args.out)
time.sleep(args.sleep)
loss = math.log2(args.lr / 1e-3) ** 2 + abs(args.noise - 0.1) - 0.01 * args.factor + 0.001 * args.seed
loss = loss if not args.limit or args.lr < args.limit else math.nan
print("warming up", json.dumps([1]))
print(json.dumps({"step": 1, "loss": 9.0}))
print(json.dumps({"loss": loss}))
if args.log:
    with open(args.log, "a") as log:
        log.write(f"{args.factor} {args.noise} {args.lr} {args.seed}\\n")
"""


@pytest.fixture(scope="session")
def trainer(tmp_path_factory):
    file = tmp_path_factory.mktemp("trainer") / "my train.py"
    file.write_text(TRAINER)

    def command(**options):
        words = [
            sys.executable,
            str(file),
            "--init",
            "{checkpoint}",
            "--lr={lr}",
            "--noise",
            "{noise}",
            "--factor",
            "{factor}",
            "--seed",
            "{seed}",
            "--out",
            "{output}",
        ]
        return shlex.join([*words, *(word for name, value in options.items() for word in (f"--{name}", str(value)))])

    return command


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "tokens.npy"
    np.save(file, np.random.default_rng(0).integers(0, VOCAB, 400).astype(np.uint16) // 7)
    return file


def sweep(*arguments):
    result = run("sweep", *map(str, arguments))
    assert result.code == 0, result.err
    return result


# The grid ---------------------------------------------------------------------------------------


def test_one_learning_rate_is_the_centre_of_powers_of_the_root_of_two():
    assert learning_rates("1e-3", 5) == (0.0005, 0.0007071, 0.001, 0.001414, 0.002)
    assert learning_rates("1e-3", 1) == (0.001,)
    assert learning_rates("3e-4,1e-3", 5) == (3e-4, 1e-3)


def test_a_grid_has_every_point_once_and_those_of_one_checkpoint_together():
    grid = make_grid([4, 2, 2], [1e-3, 1e-4], [0.1, 0.0], 2)
    points = list(grid)
    assert len(points) == len(set(points)) == len(grid) == 16
    checkpoints = [(point.seed, point.factor, point.noise) for point in points]
    assert checkpoints == sorted(checkpoints)


# What the trials say ----------------------------------------------------------------------------

GRID = Grid((2, 4), (1e-4, 2e-4, 4e-4, 8e-4), (0.0, 0.1), (0,))


def found(loss, grid=GRID):
    return find(grid, [Trial(point, loss(point)) for point in grid])


def test_the_optimum_of_every_width_and_the_one_that_is_good_for_all():
    best = {2: 2e-4, 4: 4e-4}
    findings = found(lambda p: np.log2(p.lr / best[p.factor]) ** 2 * (3 if p.factor == 4 else 1) + (p.noise == 0))
    assert [(cell.factor, cell.lr, cell.noise) for cell in findings.optima] == [(2, 2e-4, 0.1), (4, 4e-4, 0.1)]
    assert findings.recommendation.lr == 4e-4
    assert findings.recommendation.lr_shift == 1
    assert findings.recommendation.noise_shift == 0


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (lambda p: -p.lr, "0.0008, is the largest of the grid"),
        (lambda p: p.lr, "0.0001, is the smallest of the grid"),
        (lambda p: -p.noise, "best noise, 0.1, is the largest"),
        (lambda p: abs(p.lr - (1e-4 if p.factor == 2 else 4e-4)), "learning rates differ by 2 grid steps"),
        (lambda p: None if p.factor == 4 else p.lr, "every trial of x4 diverged"),
        (lambda p: None if (p.lr > 1e-4) == (p.factor == 2) else p.lr, "no point of the grid is sound at every width"),
    ],
)
def test_warnings(loss, says):
    assert says in "\n".join(found(loss).recommendation.warnings)


def test_no_warning_inside_of_the_grid():
    assert found(lambda p: np.log2(p.lr / 2e-4) ** 2 + p.noise).recommendation.warnings == ()


def test_a_point_that_diverged_at_one_seed_is_not_recommended():
    grid = Grid((2,), (1e-4, 2e-4, 4e-4), (0.0,), (0, 1))
    findings = found(lambda p: None if (p.lr, p.seed) == (4e-4, 1) else 1 - p.lr, grid)
    assert findings.recommendation.lr == 2e-4
    assert (findings.cell(2, 0.0, 4e-4).loss, findings.cell(2, 0.0, 4e-4).num_diverged) == (None, 1)


def test_an_order_that_changes_with_the_seed_is_told():
    grid = Grid((2,), (1e-4, 2e-4, 4e-4), (0.0,), (0, 1))
    losses = {1e-4: (9, 9), 2e-4: (1, 3), 4e-4: (2.5, 2)}
    assert "changes with the seed" in found(lambda p: losses[p.lr][p.seed], grid).recommendation.warnings[0]


def test_everything_diverged():
    findings = found(lambda _: None)
    assert findings.recommendation is None
    assert findings.optima == ()


# The built-in trainer ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tokens, tmp_path_factory):
    """A sweep from a checkpoint with an optimizer's state, and what it printed."""
    folder = tmp_path_factory.mktemp("swept")
    narrow = save_training(folder / "narrow", "Llama-tied", "adamw")
    arguments = (
        narrow,
        "--data",
        tokens,
        "--lr",
        "1e-3,3e-3",
        "--noise",
        "0,0.1",
        "--factor",
        "2,3",
        "--target",
        "8",
        "--weight-decay",
        "0.1",
        "--seeds",
        "2",
        *SHORT,
    )
    return narrow, arguments, sweep(*arguments)


def test_table_json_and_picture(swept):
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
    assert result.out.count("*") == 3  # one for each width, one that explains it
    assert re.search(r"0\.001 +\d\.\d{4}±\.\d{3}", result.out)
    assert len(re.findall(r"^\[\d+/16\] x[23] lr ", result.err, re.MULTILINE)) == 16
    assert not (folder / "checkpoints").exists()
    assert json.loads(sweep(*arguments, "--json").out) == document  # a second call has nothing left to do


def test_without_noise_every_width_takes_the_narrow_steps(swept):
    """What makes losses at different widths comparable: the mapped groups, clipping and the carried state."""
    losses = {}
    for cell in json.loads((swept[0].parent / "narrow-sweep" / "sweep.json").read_text())["cells"]:
        losses.setdefault((cell["noise"], cell["lr"]), []).append(cell["loss"])
    for (noise, _), (two, three) in losses.items():
        assert (two == pytest.approx(three, rel=1e-5)) == (noise == 0)


def test_against_the_narrow_run(tokens, tmp_path):
    """The trainer on a narrow checkpoint with its state, and on a widened one."""
    narrow = save_training(tmp_path / "narrow", "Qwen3-tied", "adamw")
    wide = widen(narrow, tmp_path / "wide", factor=3).output
    data = split(read_tokens(tokens, narrow, VOCAB), 8, tokens)
    training = Training(4, 2, 8, 0.1, clip=0.5, schedule="cosine", warmup=2)
    said = []
    losses = [
        train(path, training, data, 1e-3, 0, lambda step, loss: said.append((step, loss))) for path in (narrow, wide)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert [loss for _, loss in said[:4]] == pytest.approx([loss for _, loss in said[4:]], rel=1e-5)
    other = train(wide, training, data, 1e-2, 0, lambda *_: None)
    assert other != pytest.approx(losses[1], rel=1e-4)


def test_a_diverged_trial_is_a_result(tokens, tmp_path, saved):
    result = sweep(
        saved("Llama-untied"),
        "--data",
        tokens,
        "--lr",
        "1e-3,1e18",
        "--noise",
        "0",
        "--factor",
        "2",
        "-o",
        tmp_path / "s",
        "--no-picture",
        *SHORT,
    )
    assert "diverged" in result.out
    assert "recommended for x2 and any other width: lr 0.001, noise 0" in result.out
    assert {t["diverged"] for t in json.loads((tmp_path / "s" / "sweep.json").read_text())["trials"]} == {True, False}
    assert not (tmp_path / "s" / "sweep.png").exists()


def test_a_state_that_is_not_adams(tokens, tmp_path):
    narrow = save_training(tmp_path / "narrow", "Llama-tied", "sgd")
    arguments = (narrow, "--data", tokens, "--lr", "1e-3,2e-3", "--noise", "0", "-f", "2", *SHORT)
    result = run("sweep", *map(str, arguments), "-o", str(tmp_path / "s"))
    assert result.code == 2
    assert "is not Adam's" in result.err
    sweep(*arguments, "--optimizer", "none", "-o", tmp_path / "t")


def test_schedules():
    constant, cosine = Training(10, warmup=2), Training(10, warmup=2, schedule="cosine")
    assert [schedule(step, constant) for step in (0, 1, 2, 9)] == [0.5, 1, 1, 1]
    assert schedule(2, cosine) == 1
    assert 0.1 < schedule(9, cosine) < 0.2


def test_the_loss_is_that_of_all_sequences():
    """Batches of unequal size count by their sequences."""

    class Model(torch.nn.Linear):
        def forward(self, input_ids, labels):  # noqa: ARG002 (transformers' signature)
            return type("Output", (), {"loss": input_ids.float().mean()})

    sequences = np.arange(30).reshape(5, 6)
    assert evaluate(Model(1, 1), sequences, 2) == pytest.approx(sequences.mean())


def test_a_single_file_with_its_config(tokens, tmp_path, saved):
    narrow = tmp_path / "one.safetensors"
    narrow.write_bytes((saved("Llama-untied") / "model.safetensors").read_bytes())
    (tmp_path / "one.config.json").write_bytes((saved("Llama-untied") / "config.json").read_bytes())
    result = sweep(narrow, "--data", tokens, "--lr", "1e-3,2e-3", "--noise", "0.1", "-f", "2", *SHORT)
    assert f"wrote {tmp_path / 'one-sweep' / 'sweep.json'}" in result.out


# Going on, and side by side ---------------------------------------------------------------------


def start(*arguments):
    command = [sys.executable, "-m", "mupscale_cli", "sweep", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def until(condition, seconds=60):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def lines(log):
    return log.read_text().splitlines() if log.exists() else []


def test_a_killed_sweep_goes_on(trainer, tmp_path, saved, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "log"
    arguments = (
        saved("Llama-untied"),
        "--command",
        trainer(log="log", sleep=0.1),
        "--lr",
        "1e-3",
        "--lr-steps",
        "3",
        "--noise",
        "0.1,0.2",
        "--factor",
        "2",
        "--no-picture",
    )
    first = start(*arguments, "-o", tmp_path / "s")
    until(lambda: len(lines(log)) >= 3)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert not done["complete"]
    assert 2 <= len(done["trials"]) < 6
    second = sweep(*arguments, "-o", tmp_path / "s")
    assert re.search(r"going on: \d of 6 trials are done", second.err)
    ran = lines(log)
    assert len(set(ran)) == 6
    assert len(ran) <= 7  # the one that was killed ran again, and no other
    sweep(*arguments, "-o", tmp_path / "t")
    assert (tmp_path / "s" / "sweep.json").read_text() == (tmp_path / "t" / "sweep.json").read_text()


def test_processes_side_by_side_do_each_trial_once(trainer, tmp_path, saved):
    log = tmp_path / "log"
    arguments = (
        saved("Llama-untied"),
        "--command",
        trainer(log=log, sleep=0.1),
        "--lr-steps",
        "5",
        "--noise",
        "0,0.1",
        "--factor",
        "2",
        "-o",
        tmp_path / "s",
        "--json",
        "--no-picture",
    )
    other = start(*arguments)
    ours = json.loads(sweep(*arguments, "--jobs", "2").out)
    out, err = other.communicate(timeout=90)
    assert other.returncode == 0, err
    assert len(lines(log)) == len(set(lines(log))) == 10
    assert json.loads(out) == ours
    assert ours["complete"]


def test_a_grid_can_grow(trainer, tmp_path, saved):
    log = tmp_path / "log"
    arguments = (
        saved("Llama-untied"),
        "--command",
        trainer(log=log),
        "--noise",
        "0.1",
        "--factor",
        "2",
        "-o",
        tmp_path / "s",
        "--no-picture",
    )
    assert "is the largest of the grid" in sweep(*arguments, "--lr", "2e-4,5e-4").out
    assert "recommended for x2 and any other width: lr 0.001," in sweep(*arguments, "--lr", "5e-4,1e-3,2e-3").out
    assert len(lines(log)) == 4
    assert (
        len(json.loads(sweep(*arguments, "--lr", "1e-3", "--lr-steps", "1", "--json").out)["trials"]) == 1
    )  # and shrink
    assert len(lines(log)) == 4


# The user's own trainer -------------------------------------------------------------------------


def test_own_trainer(trainer, tmp_path, saved):
    command = trainer(limit=1.9e-3)
    result = sweep(
        saved("Llama-untied"),
        "--command",
        command,
        "--noise",
        "0,0.1",
        "--factor",
        "2",
        "--factor",
        "4",
        "--seeds",
        "2",
        "-o",
        tmp_path / "s",
    )
    assert "recommended for x4 and any other width: lr 0.001, noise 0.1" in result.out
    assert "loss of the command" in result.out
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert document["training"] is None
    assert {t["lr"] for t in document["trials"] if t["diverged"]} == {0.002}
    best = next(cell for cell in document["optima"] if cell["factor"] == 4)
    assert best["loss"] == pytest.approx(-0.04 + 0.0005)
    assert best["spread"] == pytest.approx(0.0005)
    assert "warming up" in (tmp_path / "s" / "trials" / "0" / "stdout.txt").read_text()


def test_what_is_filled_in_is_not_read_again():
    words = parse_command("train {checkpoint} --lr={lr} '{\"a\": 1}'")
    assert fill(words, {"checkpoint": "/a b/{lr}", "lr": "1"}) == ["train", "/a b/{lr}", "--lr=1", '{"a": 1}']


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import sys; print('cause', file=sys.stderr); sys.exit(3)", ["ended with 3", "    cause"]),
        ("print('hello')", ["printed no line of JSON with `loss`", "    hello"]),
        ("print('{\"loss\": 1}'); print('{\"done\": true}')", ["printed no line of JSON with `loss`"]),
        ("print('{\"loss\": [1]}')", ["its loss is [1], which is no number"]),
    ],
)
def test_own_trainer_that_fails(program, says, tmp_path, saved):
    command = shlex.join([sys.executable, "-c", program, "{checkpoint}", "{lr}"])
    result = run("sweep", str(saved("Llama-untied")), "--command", command, "--factor", "2", "-o", str(tmp_path / "s"))
    assert result.code == 2
    for text in says:
        assert text in result.err


def test_an_error_of_a_side_by_side_trial_is_told_once(tmp_path, saved):
    command = shlex.join([sys.executable, "-c", "raise SystemExit(3)", "{checkpoint}", "{lr}"])
    result = run(
        "sweep", str(saved("Llama-untied")), "--command", command, "-f", "2", "-j", "2", "-o", str(tmp_path / "s")
    )
    assert result.code == 2
    assert result.err.count("error:") == 1
    assert "ended with 3" in result.err


# Bad input --------------------------------------------------------------------------------------

OWN = ("--command", "train {checkpoint} {lr}")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "nothing is given to train on"),
        (["--data", "nowhere.bin"], "there is no data at `nowhere.bin`"),
        (["--factor", "1.5", *OWN], "a factor is a whole number"),
        (["--factor", "1", *OWN], "nothing is widened: the factor is 1"),
        (["--target", "x", *OWN], "`--target` is `x`"),
        (["--lr", "fast", *OWN], "`--lr fast` is not a number"),
        (["--lr", "0", *OWN], "it must be a number above 0"),
        (["--lr", "nan", *OWN], "it must be a number above 0"),
        (["--lr-steps", "0", *OWN], "`--lr-steps 0` is not at least 1"),
        (["--noise", "-1", *OWN], "it must be a number at least 0"),
        (["--noise", "a,b", *OWN], "`--noise a,b` is not a number"),
        (["--noise-mode", "loud", *OWN], "`--noise-mode loud` is not known"),
        (["--noise-scale", "loud", *OWN], "`--noise-scale loud` is not known"),
        (["--seeds", "0", *OWN], "`--seeds 0` is not at least 1"),
        (["--jobs", "0", *OWN], "`--jobs 0` is not at least 1"),
        (["--steps", "0", *OWN], "`--steps 0` is not at least 1"),
        (["--length", "1", *OWN], "`--length 1` is not at least 2"),
        (["--clip", "-1", *OWN], "`--clip -1` is not at least 0"),
        (["--betas", "0.9", *OWN], "is not two numbers"),
        (["--betas", "0.9,1", *OWN], "each must be at least 0 and below 1"),
        (["--eps", "0", *OWN], "`--eps 0` is not between 0 and 1"),
        (["--schedule", "wild", *OWN], "`--schedule wild` is not known"),
        (["--axis", "nothing=2", *OWN], "has no axis `nothing`"),
        (["--command", "train {lr}"], "does not say {checkpoint}"),
        (["--command", "train {checkpoint}"], "does not say {lr}"),
        (["--command", "train {checkpoint} {lr} {epochs}"], "{epochs}, which is not known"),
        (["--command", "train 'open"], "is no command line"),
        (["--command", " "], "`--command` is empty"),
        (["--command", "/no/such/program {checkpoint} {lr}"], "cannot be started"),
        (["--proxy-steps", "3", *OWN], "no `--proxy`"),
        (["--proxy", "1", *OWN], "`--proxy 1` is not at least 2"),
        (["--proxy", "2", "--proxy-steps", "-1", *OWN], "is not at least 0"),
        (["--proxy", "3", "--proxy-steps", "0", *OWN], "cannot be divided by 3"),
        (["--proxy", "2", "--proxy-steps", "3", *OWN], "nothing is given to train on"),
        (["-o", "FILE", *OWN], "is not a directory"),
        (["-o", "FULL", *OWN], "holds something that is no sweep"),
    ],
)
def test_bad_input(arguments, says, tmp_path, saved):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    places = {"FILE": str(tmp_path / "file"), "FULL": str(tmp_path / "full")}
    output = () if "-o" in arguments else ("-o", str(tmp_path / "s"))
    result = run("sweep", str(saved("Llama-untied")), *(places.get(word, word) for word in arguments), *output)
    assert result.code == 2, result.err
    assert says in result.err
    assert "Traceback" not in result.err


def test_a_model_that_the_trainer_does_not_know(tokens, saved, tmp_path):
    result = run("sweep", str(saved("Bert-tied")), "--data", str(tokens), "-o", str(tmp_path / "s"))
    assert result.code == 2
    assert "trains causal language models, and `BertForMaskedLM` is none" in result.err


def test_another_sweep_in_the_same_directory(trainer, tmp_path, saved):
    arguments = (
        saved("Llama-untied"),
        "--lr-steps",
        "1",
        "--noise",
        "0",
        "-f",
        "2",
        "-o",
        tmp_path / "s",
        "--no-picture",
    )
    sweep(*arguments, "--command", trainer())
    result = run("sweep", *map(str, arguments), "--command", trainer(limit=1))
    assert result.code == 2
    assert "the study was begun with command" in result.err


def test_another_checkpoint_under_the_same_name(trainer, tmp_path, saved):
    narrow = tmp_path / "narrow"
    shutil.copytree(saved("Llama-untied"), narrow)
    arguments = ("--command", trainer(), "--lr-steps", "1", "--noise", "0", "-f", "2", "-o", tmp_path / "s")
    sweep(narrow, *arguments)
    randomise(build("Llama-untied"), seed=1).save_pretrained(narrow)
    result = run("sweep", str(narrow), *map(str, arguments))
    assert result.code == 2
    assert "the study was begun with model.safetensors" in result.err


def test_a_journal_that_is_none(tmp_path, saved):
    (tmp_path / "s" / "locks").mkdir(parents=True)
    (tmp_path / "s" / "study.journal").write_text("not JSON\nat all\n")
    result = run("sweep", str(saved("Llama-untied")), *OWN, "-o", str(tmp_path / "s"))
    assert result.code == 2
    assert "cannot read" in result.err


@pytest.mark.parametrize(
    ("module", "says"),
    [
        ("optuna", "pip install 'mupscale[sweep]'"),
        ("matplotlib", "pip install 'mupscale[sweep]'"),
        ("transformers", "pip install 'mupscale[sweep]'"),
    ],
)
def test_what_is_not_installed_is_named(module, says, tokens, tmp_path, saved, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    result = run(
        "sweep",
        str(saved("Llama-untied")),
        "--data",
        str(tokens),
        "--lr-steps",
        "1",
        "--noise",
        "0",
        "-f",
        "2",
        "-o",
        str(tmp_path / "s"),
        *SHORT,
    )
    assert result.code == 2
    assert re.search(f"{module}, which is not installed", result.err, re.IGNORECASE)
    assert says in result.err


# Data -------------------------------------------------------------------------------------------

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def write_data(folder: Path, kind: str) -> Path:
    file = folder / f"data.{kind}"
    if kind == "bin":
        np.array(IDS, dtype="<u2").tofile(file)
    elif kind == "npy":
        np.save(file, np.array(IDS).reshape(2, 4))
    elif kind == "safetensors":
        save_file({"input_ids": torch.tensor(IDS), "mask": torch.ones(8)}, file)
    elif kind == "pt":
        torch.save({"tokens": torch.tensor(IDS)}, file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps({"input_ids": ids}) + "\n" for ids in (IDS[:4], IDS[4:])))
    else:
        file.mkdir()
        write_data(file, "jsonl")
    return file


@pytest.mark.parametrize("kind", ["bin", "npy", "safetensors", "pt", "jsonl", "folder"])
def test_token_files(kind, tmp_path):
    assert read_tokens(write_data(tmp_path, kind), tmp_path, VOCAB).tolist() == IDS


def test_larger_vocabularies_have_larger_numbers(tmp_path):
    np.array([70_000, 1], dtype="<u4").tofile(tmp_path / "data.bin")
    assert read_tokens(tmp_path / "data.bin", tmp_path, 100_000).tolist() == [70_000, 1]
    with pytest.raises(SweepError, match="the model knows 0 to 49"):
        read_tokens(tmp_path / "data.bin", tmp_path, VOCAB)


def test_text_is_bytes_for_a_model_of_bytes(tmp_path):
    (tmp_path / "data.txt").write_text("né")
    (tmp_path / "rows.jsonl").write_text('{"text": "n"}\n\n{"text": "é"}\n')
    assert read_tokens(tmp_path / "data.txt", tmp_path, 256).tolist() == list("né".encode())
    assert read_tokens(tmp_path / "rows.jsonl", tmp_path, 256).tolist() == list("né".encode())
    with pytest.raises(SweepError, match="there is no tokenizer in"):
        read_tokens(tmp_path / "data.txt", tmp_path, VOCAB)


def test_text_with_a_tokenizer(tmp_path):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "end": 2}, unk_token="a"))  # noqa: S106 (no secret)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="end").save_pretrained(tmp_path)  # noqa: S106
    (tmp_path / "data.jsonl").write_text('{"text": "b a"}\n{"text": "b"}\n')
    assert read_tokens(tmp_path / "data.jsonl", tmp_path, VOCAB).tolist() == [1, 0, 2, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("data.csv", b"1,2", "of no kind that is known"),
        ("data.bin", b"123", "no whole number of uint16"),
        ("data.bin", b"", "no whole number of uint16"),
        ("data.npy", b"123", "cannot read"),
        ("data.pt", b"123", "cannot read"),
        ("data.safetensors", b"123", "cannot read"),
        ("data.jsonl", b"{", "line 1: not a JSON object"),
        ("data.jsonl", b"", "holds no rows"),
        ("data.jsonl", b'{"title": "a"}', "have neither `text` nor `input_ids`: title"),
        ("data.jsonl", b'{"input_ids": [1]}\n{"title": "a"}', "a row of .* has no `input_ids`: title"),
        ("data.jsonl", b'{"input_ids": [50]}', "holds the token 50, the model knows 0 to 49"),
        ("data.jsonl", b'{"input_ids": [-1]}', "holds the token -1"),
        ("data.jsonl", b'{"input_ids": ["a"]}', "cannot read"),
        ("data.jsonl", b'{"input_ids": []}', "holds no tokens"),
        ("data.txt", b"\xff", "cannot read"),
        ("folder/readme.md", b"", "is no dataset"),
    ],
)
def test_data_that_cannot_be_read(name, content, says, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SweepError, match=says):
        read_tokens(tmp_path / name.split("/")[0], tmp_path, VOCAB)


def test_fractions_are_no_tokens(tmp_path):
    np.save(tmp_path / "data.npy", np.ones(3))
    with pytest.raises(SweepError, match="float64, expected whole numbers"):
        read_tokens(tmp_path / "data.npy", tmp_path, VOCAB)


def test_datasets_is_named_where_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "part.parquet").write_bytes(b"")
    with pytest.raises(SweepError, match="not installed") as error:
        read_tokens(tmp_path, tmp_path, VOCAB)
    assert error.value.hint == "pip install datasets"


def test_the_last_tenth_is_held_out(tmp_path):
    data = split(np.arange(200), 8, tmp_path)
    assert len(data.train) == 180
    assert data.held_out.tolist() == [list(range(180, 188)), list(range(188, 196))]
    with pytest.raises(SweepError, match="sequences of 32 need at least 320"):
        split(np.arange(200), 32, tmp_path)


# A proxy ----------------------------------------------------------------------------------------


def narrowed(directory, ratio, axes=None):
    source = open_checkpoint(directory)
    recipe = choose_recipe(source)
    return source.config, narrowed_config(source, recipe, resolve_factors(recipe, ratio, axes or {}))


def test_a_proxy_is_narrower_by_its_ratio(saved):
    config, narrow = narrowed(saved("Llama-tied"), 2)
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        assert narrow[name] * 2 == config[name]
    for name in ("head_dim", "vocab_size", "num_hidden_layers"):
        assert narrow[name] == config[name]


def test_an_axis_that_is_not_narrowed(saved):
    _, narrow = narrowed(saved("Llama-tied"), 2, {"ffn": 1})
    assert (narrow["hidden_size"], narrow["intermediate_size"]) == (24, 40)


def test_a_config_that_cannot_be_narrowed(saved, tmp_path):
    with pytest.raises(SweepError, match="`num_key_value_heads` is 2, which cannot be divided by 4"):
        narrowed(saved("Llama-tied"), 4)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("OPT-projected", "the proxy does not widen to the checkpoint: `model.decoder.embed_tokens.weight`"),
        ("CodeGen-untied", "the proxy's config does not widen to the checkpoint's"),
        ("Lfm2-untied", "`intermediate_size` goes from 40 to 512, which is no whole ratio"),
    ],
)
def test_a_model_that_cannot_be_narrowed(case, says, saved, tmp_path):
    result = run("sweep", str(saved(case)), *OWN, "--proxy", "2", "-o", str(tmp_path / "s"))
    assert result.code == 2
    assert says in result.err
    assert "train a smaller model yourself" in result.err
    assert not (tmp_path / "s" / "proxy").exists()


@pytest.mark.parametrize("case", ["GPT2-tied", "Gemma2-tied", "Mixtral-untied", "GPTNeoX-untied"])
def test_a_proxy_widens_to_the_shapes_of_the_checkpoint(case, saved, tmp_path):
    source = open_checkpoint(saved(case))
    make_proxy(source, ProxyRequest(2, {}, None, None, 1e-3, 0), Training(), None, tmp_path / "proxy", lambda *_: None)
    plan = plan_widening(tmp_path / "proxy", factor=2)
    shapes = {tensor.target.name: tensor.target.shape for tensor in plan.tensors}
    assert shapes == {spec.name: spec.shape for spec in source.specs}


def test_a_sweep_with_a_proxy_and_its_hyperparameters(tokens, tmp_path, saved):
    """The rates of the large model are those of the proxy divided by both widenings."""
    narrow = saved("Llama-untied")
    result = sweep(
        narrow,
        "--data",
        tokens,
        "--proxy",
        "2",
        "--proxy-steps",
        "2",
        "--lr",
        "1e-3,2e-3",
        "--noise",
        "0.1",
        "-f",
        "2",
        "-o",
        tmp_path / "s",
        "--no-picture",
        *SHORT,
    )
    assert "making the proxy, 2 steps" in result.err
    assert (tmp_path / "s" / "proxy" / "optimizer.pt").is_file()
    assert open_checkpoint(tmp_path / "s" / "proxy").config["hidden_size"] == 24
    document = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert (document["proxy"]["ratio"], document["proxy"]["steps"]) == (2, 2)
    widen(narrow, tmp_path / "wide", factor=2, verify=False)
    groups = json.loads(run("hparams", str(tmp_path / "wide"), "--from-sweep", str(tmp_path / "s"), "--json").out)
    by_name = {name: group for group in groups["groups"] for name in group["tensors"]}
    lr = document["recommendation"]["lr"]
    assert by_name["model.layers.0.mlp.up_proj.weight"]["lr"] == pytest.approx(lr / 4)
    assert by_name["model.layers.0.mlp.up_proj.weight"]["eps"] == pytest.approx(1e-8 / 4)
    assert by_name["model.embed_tokens.weight"]["lr"] == pytest.approx(lr)
    assert by_name["model.embed_tokens.weight"]["clip_weight"] == 4


# hparams ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(swept, tmp_path_factory):
    return str(widen(swept[0], tmp_path_factory.mktemp("wide") / "wide", factor=4, verify=False).output)


def test_hparams_from_a_sweep(swept, wide):
    file = swept[0].parent / "narrow-sweep" / "sweep.json"
    best = json.loads(file.read_text())["recommendation"]
    result = run("hparams", wide, "--from-sweep", str(file), "--json")
    document = json.loads(result.out)
    assert document["optimizer"] == "adamw"
    assert document["narrow"] == {"lr": best["lr"], "weight_decay": 0.1, "eps": 1e-8, "betas": [0.9, 0.95]}
    assert document["sweep"]["noise"] == best["noise"]
    assert f"the sweep found lr {best['lr']:g}" in result.err
    assert ("; widen with `--noise" in result.err) == bool(best["noise"])  # the model was widened without


def test_options_win_over_the_sweep(swept, wide):
    file = swept[0].parent / "narrow-sweep" / "sweep.json"
    result = run("hparams", wide, "--from-sweep", str(file), "--lr", "0.5", "--betas", "0.8,0.9", "--json")
    narrow = json.loads(result.out)["narrow"]
    assert (narrow["lr"], narrow["betas"], narrow["weight_decay"]) == (0.5, [0.8, 0.9], 0.1)
    assert "here it is 0.5" in result.err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read"),
        ("{", "is not valid JSON"),
        ("[]", "was not written by `mupscale sweep`"),
        ('{"loss": 1}', "was not written by `mupscale sweep`"),
        ('{"schema_version": 9, "grid": {}, "recommendation": {}}', "has format 9"),
        ('{"schema_version": 1, "grid": {}, "recommendation": null}', "recommends nothing"),
        ('{"schema_version": 1, "grid": {}, "recommendation": {}}', "is damaged"),
    ],
)
def test_files_that_are_no_sweep(content, says, wide, tmp_path):
    file = tmp_path / "sweep.json"
    if content is not None:
        file.write_text(content)
    result = run("hparams", wide, "--from-sweep", str(file))
    assert result.code == 2
    assert says in result.err


def test_hparams_needs_a_learning_rate(wide):
    result = run("hparams", wide)
    assert result.code == 2
    assert "the learning rate of the narrow run is not given" in result.err


def test_points_are_ordered_by_checkpoint():
    assert Point(2, 0.0, 0, 1.0) < Point(2, 0.0, 1, 0.5) < Point(2, 0.1, 0, 0.1) < Point(4, 0.0, 0, 0.1)
