"""Every option is declared once and available in the Python API, the command and job files."""

import inspect
import json
import pydoc
from dataclasses import fields, replace
from pathlib import Path

import pytest

import mupscale_cli
from cli_runner import run
from mupscale_cli.cli import verify as verify_command
from mupscale_cli.cli import widen as widen_command
from mupscale_cli.errors import PlanError, VerifyError
from mupscale_cli.tasks import verify as verify_task
from mupscale_cli.tasks.jobs.file import read_job
from mupscale_cli.tasks.options import WidenOptions, called_with, option_name
from mupscale_cli.verification.options import VerifyOptions

# A text for each option of `widen`, its value, and further options that it requires.
WIDEN = {
    "output": ("/out", Path("/out"), {}),
    "factor": ("3", 3, {}),
    "axes": ("ffn=4", {"ffn": 4}, {}),
    "to": ("/target", "/target", {}),
    "layers": ("6", 6, {}),
    "layers_at": ("end", "end", {}),
    "params": ("1.2B", 1_200_000_000, {}),
    "recipe": ("llama", "llama", {}),
    "infer": (False, False, {}),
    "settings": ("num_attention_heads=32", {"num_attention_heads": 32}, {}),
    "tie": ("untie", "untie", {}),
    "clean_names": (True, True, {}),
    "method": ("net2net", "net2net", {}),
    "noise": ("0.25", 0.25, {}),
    "noise_mode": ("preserving", "preserving", {"noise": "0.1"}),
    "noise_scale": ("rms", "rms", {"noise": "0.1"}),
    "noise_on": ("model.layers.*", ("model.layers.*",), {"noise": "0.1"}),
    "seed": ("7", 7, {}),
    "fresh": ("zero", "zero", {}),
    "spread": ("balanced", "balanced", {}),
    "shrink": ("0.5", 0.5, {"method": "warmstart"}),
    "snr": ("20", 20, {"method": "hyperclone"}),
    "adapter": ("/adapter", (Path("/adapter"),), {}),
    "layout": ("torch", "torch", {}),
    "weights_key": ("state.model", "state.model", {}),
    "optimizer": ("none", "none", {}),
    "optimizer_kind": ("lamb", ("lamb",), {}),
    "optimizer_policy": ("reset", "reset", {}),
    "key": ("adam", "adam", {}),
    "max_shard_size": ("3MB", 3_000_000, {}),
    "overwrite": (True, True, {}),
    "allow_large_factor": (True, True, {}),
    "allow_nonfinite": (True, True, {}),
    "verify": (False, False, {}),
    "dtype": ("float32", "float32", {}),
    "device": ("cpu", "cpu", {}),
    "model": ("own:build", "own:build", {}),
}
VERIFY = {
    "narrow": ("/narrow", "/narrow"),
    "only": ("function", ("function",)),
    "dtype": ("float32", "float32"),
    "device": ("cpu", "cpu"),
    "model": ("own:build", "own:build"),
    "recipe": ("llama", "llama"),
    "seed": ("7", 7),
    "steps": ("3", 3),
    "optimizer": ("/adam.pt", Path("/adam.pt")),
}


def words(given):
    """Return the command line for given options."""
    for name, value in given.items():
        option = option_name(name)
        yield from (f"--{option}", value) if isinstance(value, str) else (f"--{option}" if value else f"--no-{option}",)


def in_a_job(folder, kind, given):
    """Return the options of a job's step with given options."""
    options = "".join(f"    {option_name(name)}: {str(value).lower()}\n" for name, value in given.items())
    (folder / "job.yaml").write_text(f"steps:\n  - {kind}: /x\n{options}")
    (step,) = read_job(folder / "job.yaml")
    return step.options


@pytest.mark.parametrize("field", [field.name for field in fields(WidenOptions)])
def test_an_option_of_widen_is_in_the_api_the_command_and_job_files(field, tmp_path, monkeypatch):
    taken = []

    def plan(_source, options):
        taken.append(options)
        raise PlanError("enough")

    monkeypatch.setattr(widen_command, "find_source", lambda *_, **__: None)
    monkeypatch.setattr(widen_command, "plan_shapes", plan)
    text, value, beside = WIDEN[field]
    given = {field: text, **beside}
    assert "enough" in run("widen", "/x", *words(given)).err
    assert getattr(taken[0], field) == value != getattr(WidenOptions(), field)
    assert getattr(in_a_job(tmp_path, "widen", given), field) == value
    assert {field} <= inspect.signature(mupscale_cli.widen).parameters.keys()
    assert {field} <= inspect.signature(mupscale_cli.plan_widening).parameters.keys()


@pytest.mark.parametrize("field", [field.name for field in fields(VerifyOptions)])
def test_an_option_of_verify_is_in_the_api_the_command_and_job_files(field, tmp_path, monkeypatch):
    taken = []

    def check(_wide, options):
        taken.append(options)
        raise VerifyError("enough")

    monkeypatch.setattr(verify_command, "replan_widening", lambda *_, **__: None)
    monkeypatch.setattr(verify_task, "verify", called_with(verify_task.VerifyCall)(check))
    text, value = VERIFY[field]
    arguments = (text, "/x") if field == "narrow" else ("/x", *words({field: text}))
    assert "enough" in run("verify", *arguments).err
    assert getattr(taken[0], field) == value != getattr(VerifyOptions(), field)
    assert getattr(in_a_job(tmp_path, "verify", {field: text}), field) == value
    assert {field} <= inspect.signature(mupscale_cli.verify).parameters.keys()


@pytest.mark.parametrize("field", [field.name for field in fields(WidenOptions)])
def test_resume_continues_only_a_run_with_the_same_options(field):
    _, value, beside = WIDEN[field]
    before = WidenOptions(**{name: WIDEN[name][1] if name == "noise" else value for name, value in beside.items()})
    after = replace(before, **{field: value})
    may_change = {"infer", "output", "overwrite", "verify", "dtype", "device", "model"}
    assert (before.decisive == after.decisive) == (field in may_change)
    assert json.loads(json.dumps(after.decisive)) == after.decisive


def test_one_option_written_in_two_ways_is_one_run():
    text = WidenOptions(recipe="mine.yaml", axes=None)
    assert WidenOptions(recipe=Path("mine.yaml"), axes={}).decisive == text.decisive


def test_a_misspelled_option_is_refused_before_any_work():
    with pytest.raises(TypeError, match="nois"):
        mupscale_cli.widen("nowhere", nois=0.1)


def test_contradictory_options_are_refused_before_any_work():
    with pytest.raises(PlanError, match="`noise_mode` has no effect without `noise`"):
        WidenOptions(noise_mode="free")
    with pytest.raises(PlanError, match="unknown optimizer policy"):
        WidenOptions(optimizer_policy="melt")


def test_help_shows_every_option_with_its_type_and_default():
    shown = pydoc.render_doc(mupscale_cli.widen)
    assert "noise: 'float | None' = None" in shown
    assert "processes: 'int | None' = 1" in shown
