"""nanoGPT's own train.py: a narrow run, its ckpt.pt widened, and resumed with the three lines that `widen` prints."""

import shutil

import numpy as np
import pytest
import torch
from checkouts import changed, checkout, largest_difference, run_script, verify_with_page, with_printed_lines

from cli_runner import run

SIZES = ("--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=16", "--batch_size=4")
STEPS = ("--max_iters=20", "--lr_decay_iters=40", "--warmup_iters=4", "--learning_rate=1e-2", "--min_lr=1e-3")
PLACE = ("--dataset=tiny", "--device=cpu", "--compile=False", "--dtype=float32", "--gradient_accumulation_steps=1")
EVAL = ("--eval_interval=10", "--eval_iters=1")
# So that runs can be compared: losses in full, and batches that do not depend on how many weights were drawn before.
SEEN = (
    ("loss {lossf:.4f}", "loss {lossf!r}"),
    ("X, Y = get_batch('train') # fetch", "torch.manual_seed(7); X, Y = get_batch('train') # fetch"),
)


@pytest.fixture
def trainer(tmp_path):
    """NanoGPT's scripts with a random data set."""
    source = checkout("NANOGPT")
    for name in ("model.py", "configurator.py", "train.py"):
        shutil.copy(source / name, tmp_path / name)
    data = tmp_path / "data" / "tiny"
    data.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in ("train", "val"):
        (generator.random(5000) ** 3 * 64).astype(np.uint16).tofile(data / f"{name}.bin")
    script = changed((tmp_path / "train.py").read_text(), *SEEN, ("else 50304", "else 64"))
    (tmp_path / "train.py").write_text(script)
    return tmp_path


@pytest.mark.parametrize("bias", [True, False])
def test_the_wide_run_has_the_losses_of_the_narrow_one(bias, trainer):
    options = (*SIZES, *STEPS, *PLACE, *EVAL, f"--bias={bias}")
    run_script(trainer, "train.py", *options, "--out_dir=narrow", "--max_iters=10")
    shutil.copytree(trainer / "narrow", trainer / "start")
    narrow, _ = run_script(trainer, "train.py", *options, "--out_dir=narrow", "--init_from=resume")

    made = run("widen", str(trainer / "start"), "-o", str(trainer / "wide"), "--factor", "2")
    assert made.code == 0, made.err
    assert "as reference.py, beside its model.py" in " ".join(made.out.split())
    verify_with_page("nanoGPT", trainer, trainer / "wide")
    script = trainer / "train.py"
    script.write_text(with_printed_lines(script.read_text(), made.out))
    wide, _ = run_script(trainer, "train.py", *options, "--out_dir=wide", "--init_from=resume")
    assert len(wide) == 11
    assert largest_difference(narrow, wide) < 1e-6
    run_script(trainer, "train.py", *options, "--out_dir=again", "--max_iters=10")  # narrow ones, by the changed script
    again, _ = run_script(trainer, "train.py", *options, "--out_dir=again", "--init_from=resume")
    assert largest_difference(narrow, again) < 1e-6

    saved = torch.load(trainer / "wide" / "ckpt.pt", weights_only=True)
    assert saved["model_args"]["n_embd"] == 32
    weights = saved["model"]
    assert weights["lm_head.weight"].data_ptr() == weights["transformer.wte.weight"].data_ptr()
