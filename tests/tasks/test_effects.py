"""An option without effect is refused: one table for all commands, the Python API and job files."""

import pytest

import mupscale
from cli_runner import options_of, run
from helpers import save_mlp
from mupscale_cli.errors import OptionError
from mupscale_cli.tasks.effects import IDLE
from mupscale_cli.tasks.jobs.file import read_job
from mupscale_cli.tasks.options import WidenOptions
from mupscale_cli.tasks.widen import widen

WIDEN, VERIFY, HPARAMS = ("widen", "--factor", "2"), ("verify",), ("hparams", "--lr", "1")
SWEEP, COORDINATES = ("sweep", "--command", "true {checkpoint} {lr} {noise} {factor} {seed}"), ("coordcheck",)
STATE = (("--key", "adam"), ("--optimizer-policy", "reset"), ("--optimizer-kind", "lamb"))
REFUSED = [
    *((WIDEN, ("--optimizer", "none", *option), option[0], "with `--optimizer none`") for option in STATE),
    *((WIDEN, option, option[0], "no optimizer state is beside") for option in STATE),
    *(
        (WIDEN, ("--no-verify", *each), each[0], "`--no-verify`")
        for each in (("--dtype", "float32"), ("--device", "cpu"))
    ),
    (WIDEN, ("--noise-scale", "rms"), "--noise-scale", "without `--noise`"),
    (WIDEN, ("--tensor", "q_proj"), "--tensor", "without `--dry-run`"),
    (WIDEN, ("--create-pr",), "--create-pr", "without `--push-to-hub`"),
    *(
        (VERIFY, ("--only", "weights", *option), option[0], "`--only` excludes")
        for option in (("--dtype", "float32"), ("--seed", "3"), ("--steps", "2"), ("--report", "x.html"))
    ),
    (VERIFY, ("--only", "weights", "--optimizer", "none"), "--optimizer", "excludes the optimizer state"),
    (VERIFY, ("--overwrite",), "--overwrite", "without `--report`"),
    (HPARAMS, ("--json", "--format", "torch"), "--json", "with `--format torch`"),
    (HPARAMS, ("--json", "--yaml"), "--json", "with `--yaml`"),
    (HPARAMS, ("--optimizer", "sgd", "--betas", "0.9,0.95"), "--betas", "SGD has no betas"),
    (HPARAMS, ("--optimizer", "lion", "--eps", "1e-8"), "--eps", "Lion has no eps"),
    (HPARAMS, ("--adjust-lr", "original"), "--adjust-lr", "AdamW has no factor"),
    (HPARAMS, ("--decay", "all"), "--decay", "without weight decay"),
    (HPARAMS, ("--depth", "completep"), "--depth", "as many blocks"),
    (SWEEP, ("--factor", "2", "--steps", "3"), "--steps", "`--command` trains"),
    (SWEEP, ("--noise", "0", "--noise-mode", "free"), "--noise-mode", "without noise"),
    (SWEEP, ("--lr", "1e-3,1e-2", "--lr-steps", "3"), "--lr-steps", "lists the learning rates"),
    (SWEEP, ("--proxy-steps", "3"), "--proxy-steps", "without `--proxy`"),
    (COORDINATES, ("--no-picture", "--output", "x.png"), "--output", "`--no-picture`"),
    (COORDINATES, ("--noise", "0", "--noise-on", "x"), "--noise-on", "without noise"),
    (("run",), ("--dry-run", "--report", "x.html"), "--report", "with `--dry-run`"),
    (("recipes", "check"), ("--no-run", "--model-type", "llama"), "--model-type", "`--no-run`"),
    (("recipes", "infer"), ("--overwrite",), "--overwrite", "without `--output`"),
]


@pytest.fixture(scope="module")
def wide(saved, tmp_path_factory):
    return widen(saved("Llama-tied"), tmp_path_factory.mktemp("effects") / "wide", 2, verify=False).output


@pytest.mark.parametrize(
    ("command", "options", "option", "why"), REFUSED, ids=lambda each: " ".join(each) if type(each) is tuple else ""
)
def test_an_option_without_effect_is_refused(command, options, option, why, saved, wide):
    subject = wide if command in (VERIFY, HPARAMS) else saved("Llama-tied") if command[0] != "recipes" else "llama"
    refused = run(*command, str(subject), *options)
    text = " ".join(refused.err.split())
    assert refused.code == 2, text
    assert f"`{option}` has no effect" in text
    assert why in text
    assert f"omit `{option}`" in text


def test_a_size_of_files_has_no_effect_on_a_single_file(tmp_path):
    refused = run("widen", str(save_mlp(tmp_path / "net.safetensors")), "-f", "2", "--max-shard-size", "1KB")
    assert refused.code == 2
    assert "`--max-shard-size` has no effect" in refused.err


def test_python_and_job_files_refuse_what_one_call_or_step_contradicts(tmp_path):
    with pytest.raises(OptionError, match="`dtype` has no effect with `verify=False`"):
        WidenOptions(factor=2, verify=False, dtype="float32")
    with pytest.raises(OptionError, match="`steps` has no effect"):
        mupscale.verify("x", only=["weights"], steps=3)
    job = tmp_path / "job.yaml"
    step = "  - {widen: x, factor: 2, verify: false"
    job.write_text(f"steps:\n{step}, dtype: float32}}\n")
    with pytest.raises(mupscale.MupscaleError, match="has no effect"):
        read_job(job)
    job.write_text(f"defaults: {{widen: {{dtype: float32, noise-mode: free}}}}\nsteps:\n{step}}}\n")
    (read,) = read_job(job)  # a default is for the steps that have a use for it
    assert (read.options.dtype, read.options.noise_mode) == ("auto", None)


def test_every_row_names_options_that_its_command_has():
    known = {}
    for command, parameter in options_of():
        name = parameter.opts[0].lstrip("-").replace("-", "_")
        known.setdefault(command.removeprefix("mupscale").strip(), set()).add(name)
    for command, rows in IDLE.items():
        for row in rows:
            assert set(row.options.split()) <= known[command], (command, row.options)
