"""nanochat's own base_train.py: a narrow run, its files widened, and resumed with the lines that `widen` prints.

The gates of nanochat read the first copy of the stream alone, so copies get other gradients and the runs drift apart.
With gates that read the mean of all copies, which is the same function at first, the runs are equal.
"""

import re
import shutil
from pathlib import Path

import pytest
from checkouts import changed, checkout, largest_difference, run_script, verify_with_page, with_printed_lines

from cli_runner import run

DRIVER = Path(__file__).with_name("nanochat_run.py")
# The rates are those of nanochat for its own batches of half a million tokens; it multiplies them for these of 64.
RATES = ("--matrix-lr=1.8", "--embedding-lr=27", "--unembedding-lr=0.7", "--scalar-lr=45", "--warmup-steps=3")
SIZES = ("--depth=4", "--head-dim=12", "--max-seq-len=16", "--window-pattern=L", "--device-type=cpu")
STEPS = ("--num-iterations=20", "--total-batch-size=64", "--save-every=10")
QUIET = ("--eval-every=-1", "--core-metric-every=-1", "--sample-every=-1")
OPTIONS = (*RATES, *SIZES, *STEPS, *QUIET)
FACTOR = 2
SEEN = ("loss: {debiased_smooth_loss:.6f}", "loss: {train_loss_f!r}")
MEAN = f".unflatten(-1, ({FACTOR}, -1)).mean(-2)"


@pytest.fixture
def trainer(tmp_path):
    """A copy of nanochat that prints its losses in full, and a function that runs it."""
    folder = tmp_path / "nanochat"
    shutil.copytree(checkout("NANOCHAT"), folder, ignore=shutil.ignore_patterns(".git"))
    script = folder / "scripts" / "base_train.py"
    script.write_text(changed(script.read_text(), SEEN))
    return folder


def train(folder, *options, ranks=1):
    """Run base_train.py; return the losses and what it printed about weight decay."""
    command = (DRIVER, folder, folder / "scripts" / "base_train.py", *OPTIONS, *options)
    command += (f"--device-batch-size={4 // ranks}",)
    return run_script(folder, *command, ranks=ranks, NANOCHAT_BASE_DIR=str(folder.parent))


def place(folder, tag):
    """Return the folder of a run's checkpoints."""
    return folder.parent / "base_checkpoints" / tag


def widened(folder, decay, *, is_mean):
    """Widen the narrow run's files of step 10, and change the lines that `widen` prints."""
    source = place(folder, "narrow")
    for file in source.glob("*_000020*"):
        file.unlink()
    made = run("widen", str(source), "-o", str(place(folder, "wide")), "--factor", str(FACTOR))
    assert made.code == 0, made.err
    script, model = folder / "scripts" / "base_train.py", folder / "nanochat" / "gpt.py"
    script.write_text(with_printed_lines(script.read_text(), made.out.replace("NARROW_DECAY", decay)))
    if is_mean:
        text = model.read_text()
        text = changed(text, ("x[..., :self.ve_gate_channels]", f"x{MEAN}[..., :self.ve_gate_channels]"))
        model.write_text(text.replace("self.smear_gate(x[:, 1:, :24])", f"self.smear_gate(x[:, 1:]{MEAN}[..., :24])"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_wide_run_has_the_losses_of_the_narrow_one(ranks, trainer):
    narrow, text = train(trainer, "--model-tag=narrow", "--aspect-ratio=12", ranks=ranks)
    decay = re.search(r"Scaling weight decay from [\d.]+ to ([\d.]+)", text)[1]
    widened(trainer, decay, is_mean=True)
    wide, _ = train(trainer, "--model-tag=wide", "--aspect-ratio=24", "--resume-from-step=10", ranks=ranks)
    assert len(wide) == 10
    assert max(narrow.values()) - min(narrow.values()) > 0.02
    after = {step: loss for step, loss in narrow.items() if step >= 10}
    assert largest_difference(after, wide) < 1e-6


def test_the_function_of_the_page_verifies(trainer):
    _, text = train(trainer, "--model-tag=narrow", "--aspect-ratio=12")
    widened(trainer, re.search(r"Scaling weight decay from [\d.]+ to ([\d.]+)", text)[1], is_mean=False)
    verify_with_page("nanochat", trainer, place(trainer, "wide"))


def test_gates_on_one_copy_make_the_runs_drift_apart(trainer):
    narrow, text = train(trainer, "--model-tag=narrow", "--aspect-ratio=12")
    decay = re.search(r"Scaling weight decay from [\d.]+ to ([\d.]+)", text)[1]
    widened(trainer, decay, is_mean=False)
    wide, _ = train(trainer, "--model-tag=wide", "--aspect-ratio=24", "--resume-from-step=10")
    assert abs(wide[10] / narrow[10] - 1) < 1e-6
    assert 1e-6 < largest_difference({s: v for s, v in narrow.items() if s >= 10}, wide) < 1e-2
