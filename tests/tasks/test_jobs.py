"""Job files are read, planned and run; finished steps are skipped."""

import json
import os
import re
import shutil

import pytest
import torch

from cli_runner import options_of, run
from mupscale_cli.errors import RunError
from mupscale_cli.tasks.jobs import WidenStep, plan_job
from mupscale_cli.tasks.jobs.file import OPTIONS, read_job
from mupscale_cli.tasks.options import WidenOptions
from training import save_state

FAMILY = """
defaults:
  widen: {dtype: float64}
steps:
  - widen: narrow
    factor: 2
  - widen: narrow
    axis: {ffn: 3}
    output: wide/ffn
  - widen: wide/ffn        # the output of the previous step
    factor: 2
    noise: 0.1
    noise-mode: preserving
    verify: false
  - verify: narrow-x2
    steps: 2
"""


@pytest.fixture
def folder(saved, tmp_path, monkeypatch):
    """The current folder, with a narrow model."""
    shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(folder, text, *arguments):
    (folder / "job.yaml").write_text(text)
    result = run("run", "job.yaml", "--json", *arguments)
    document = json.loads(result.out)
    return result, [step["status"] for step in document.get("steps", ())], document


def test_a_family_is_planned_and_written_once(folder):
    result, statuses, document = job(folder, FAMILY, "--dry-run")
    assert (result.code, statuses) == (0, ["to do"] * 4)
    assert {path.name for path in folder.iterdir()} == {"narrow", "job.yaml"}
    assert [step["target"] for step in document["steps"]] == ["narrow-x2", "wide/ffn", "wide/ffn-x2", "narrow-x2"]
    planned = [step["parameters"] for step in document["steps"][:3]]
    (disk,) = document["disks"]
    assert disk["needed"] == sum(step["disk_bytes"] for step in document["steps"])
    assert disk["has_room"]

    result, statuses, document = job(folder, FAMILY)
    assert (result.code, statuses) == (0, ["done"] * 4), result.err
    assert [step["parameters"] for step in document["steps"][:3]] == planned
    for step in document["steps"][:3]:
        record = json.loads((folder / step["target"] / "mupscale.json").read_text())
        assert record["parameters"] == step["parameters"]
    assert document["steps"][2]["verification"] is None
    assert document["steps"][3]["verification"]["training"]["steps"] == 2

    assert job(folder, FAMILY, "--report", "family.html")[1] == ["skipped"] * 4
    page = (folder / "family.html").read_text()
    cells = [re.findall("<td[^>]*>(.*?)</td>", row) for row in re.findall("<tr[^>]*>(.*?)</tr>", page)]
    assert [row[:2] for row in cells if row] == [
        *(["narrow-x2", "narrow"], ["wide/ffn", "narrow"], ["wide/ffn-x2", "ffn"]),  # sizes
        *(["narrow-x2", "same function, and the same 2 steps"], ["wide/ffn", "same function"]),
        ["wide/ffn-x2", "not verified"],
    ]
    assert job(folder, FAMILY, "--dry-run")[1] == ["skipped"] * 4
    shown = run("run", "job.yaml", "--dry-run").out
    assert "complete, from the same input with the same options" in shown


def test_an_output_with_other_options_is_replaced_only_with_overwrite(folder):
    text = "steps:\n  - {widen: narrow, factor: 2, output: wide, verify: false}\n"
    assert job(folder, text)[1] == ["done"]
    changed = text.replace("factor: 2", "factor: 3")
    result, _, error = job(folder, changed)
    assert result.code == 2
    assert "widened by embed=x2 kv=x2 ffn=x2, not by embed=x3 kv=x3 ffn=x3" in error["message"]
    assert "--overwrite" in error["hint"]
    assert job(folder, changed, "--overwrite")[1] == ["done"]
    assert job(folder, changed)[1] == ["skipped"]
    assert job(folder, changed.replace("false", "false, noise: 0.1, overwrite: true"))[1] == ["done"]


def test_outputs_of_a_changed_input_are_rewritten(folder, saved):
    text = (
        "steps:\n  - {widen: narrow, factor: 2, output: wide, overwrite: true, verify: false}\n"
        "  - {widen: wide, axis: ffn=2, output: wider, overwrite: true, verify: false}\n"
    )
    assert job(folder, text)[1] == ["done", "done"]
    data = bytearray((folder / "narrow" / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "narrow" / "model.safetensors").write_bytes(data)
    assert job(folder, text)[1] == ["done", "done"]  # only the digest differs
    data = bytearray((folder / "wider" / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (folder / "wider" / "model.safetensors").write_bytes(data)
    assert job(folder, text)[1] == ["skipped", "done"]


def test_a_changed_optimizer_state_is_noticed(tmp_path, monkeypatch):
    """The content changes, the times of the files do not."""
    source = save_state(tmp_path / "narrow", "torch")
    monkeypatch.chdir(tmp_path)
    step = "steps:\n  - widen: narrow\n    factor: 2\n    verify: false\n"
    assert job(tmp_path, step)[1] == ["done"]
    assert job(tmp_path, step)[1] == ["skipped"]
    for path, message in (
        (tmp_path / "narrow-x2", "its `optimizer.pt` has changed"),
        (source, "the optimizer state `narrow/optimizer.pt` has changed"),
    ):
        file = path / "optimizer.pt"
        before, times = file.read_bytes(), file.stat()
        state = torch.load(file, weights_only=True)
        state["state"][3]["exp_avg"] += 1
        torch.save(state, file)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        result, statuses, document = job(tmp_path, step)
        assert (result.code, statuses) == (2, ["failed"])
        assert message in document["steps"][0]["reason"]
        file.write_bytes(before)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_an_unverified_output_is_verified_without_rewriting_it(folder):
    text = "steps:\n  - {widen: narrow, factor: 2, output: wide, verify: false}\n"
    job(folder, text)
    before = (folder / "wide" / "model.safetensors").stat().st_mtime_ns
    _, statuses, document = job(folder, text.replace(", verify: false", ""))
    assert statuses == ["done"]
    assert document["steps"][0]["verification"]["agrees"]
    assert (folder / "wide" / "model.safetensors").stat().st_mtime_ns == before


def test_steps_after_a_failure_are_not_run(folder):
    (folder / "wrong.yaml").write_text(
        'extends: llama\ntensors:\n  "{prefix}layers.*.mlp.down_proj.weight": "embed, ffn"\n'
    )
    text = (
        "steps:\n  - {widen: narrow, factor: 2, output: wrong, recipe: wrong.yaml}\n"
        "  - {widen: narrow, factor: 2, output: right, verify: false}\n"
    )
    result, statuses, document = job(folder, text)
    assert (result.code, statuses, document["exit_code"]) == (1, ["differs", "not run"], 1)
    assert not (folder / "wrong").exists()
    assert not (folder / "right").exists()
    shown = run("run", "job.yaml")
    assert shown.code == 1
    assert "not run" in shown.out


def test_a_push_runs_once(hub, saved, tmp_path):
    shutil.copytree(saved("Llama-tied"), tmp_path / "narrow")
    text = "steps:\n  - {widen: narrow, factor: 2}\n  - {push: narrow-x2, to: me/wide, private: true}\n"
    assert job(tmp_path, text, "--dry-run")[1] == ["to do", "to do"]
    assert "me/wide" not in hub.repos
    _, statuses, document = job(tmp_path, text)
    assert statuses == ["done", "done"]
    assert document["steps"][1]["url"] == f"{hub.url}/me/wide"
    assert hub.repos["me/wide"].private
    assert job(tmp_path, text)[1] == ["skipped", "skipped"]


def test_a_model_of_the_hub_is_written_next_to_the_job_file(hub, saved, tmp_path):
    hub.add("org/tiny", {file.name: file.read_bytes() for file in saved("Llama-tied").iterdir()})
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "a.yaml").write_text("steps:\n  - {widen: org/tiny, factor: 2, verify: false}\n")
    planned = json.loads(run("run", "jobs/a.yaml", "--dry-run", "--json").out)
    assert planned["download_bytes"] > 0
    assert run("run", "jobs/a.yaml").code == 0
    assert (tmp_path / "jobs" / "tiny-x2" / "mupscale.json").is_file()
    assert json.loads(run("run", "jobs/a.yaml", "--json").out)["steps"][0]["status"] == "skipped"


def test_the_disk_count_includes_states_of_chained_steps(folder):
    save_state(folder / "narrow", "torch")
    chain = "".join(
        f"  - {{widen: {source}, factor: 2, output: {name}, verify: false}}\n"
        for source, name in (["narrow", "a"], "ab")
    )
    _, _, document = job(folder, f"steps:\n{chain}", "--dry-run")
    (disk,) = document["disks"]
    job(folder, f"steps:\n{chain}")
    written = sum(file.stat().st_size for name in "ab" for file in (folder / name).rglob("*") if file.is_file())
    assert disk["needed"] == pytest.approx(written, rel=0.15)


def test_a_full_disk_is_reported_before_any_step_runs(folder, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    text = "steps:\n  - {widen: narrow, factor: 2}\n"
    _, _, document = job(folder, text, "--dry-run")
    assert not document["disks"][0]["has_room"]
    assert "NOT enough" in run("run", "job.yaml", "--dry-run").out
    result, _, error = job(folder, text)
    assert result.code == 2
    assert "not enough disk space" in error["message"]


@pytest.mark.parametrize(
    ("text", "message", "caret"),
    [
        ("", "the job file is empty", None),
        ("step: []", "unknown key `step` in a job file", "^^^^"),
        ("version: 9\nsteps: []", "reads version 1", "^"),
        ("steps: []", "needs a list of `steps`", None),
        ("steps:\n  - narrow", "this step has no action", None),
        ("steps:\n  - {widden: narrow}", "this step has no action", None),
        ("steps:\n  - {widen: narrow, fctor: 2}", "unknown key `fctor` in `widen`", "^^^^^"),
        ("steps:\n  - {widen: narrow, --factor: 2}", "unknown key `--factor` in `widen`", "^^^^^^^^"),
        ("steps:\n  - {widen: narrow, factor: two}", "`factor` is `two`, expected a number", "^^^"),
        ("steps:\n  - {widen: narrow, axis: {ffn: x}}", "`--axis ffn` is `x`, expected a number", None),
        ("steps:\n  - {widen: narrow, noise: much}", "`much` is not a number", "^^^^"),
        ("steps:\n  - {widen: narrow, verify: maybe}", "neither `true` nor `false`", "^^^^^"),
        ("steps:\n  - {widen: narrow, max-shard-size: 2 cats}", "is not a size", "^^^^^^"),
        ("steps:\n  - {widen: narrow, noise-mode: free}", "`--noise-mode` has no effect without `--noise`", "^^^^^"),
        ("steps:\n  - {widen: narrow, method: magic}", "magic", "^^^^^"),
        ("steps:\n  - {push: narrow}", "`push` has no destination", "^^^^"),
        ("defaults: {widden: {}}\nsteps:\n  - {widen: narrow}", "unknown key `widden` in `defaults`", "^^^^^^"),
        ("steps: &a\n  - *a", "anchors and aliases are not part of a job file", None),
    ],
)
def test_mistakes_in_a_job_file_are_reported_with_their_place(text, message, caret, tmp_path):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(RunError) as caught:
        read_job(tmp_path / "job.yaml")
    assert message in caught.value.message
    assert str(tmp_path / "job.yaml") in caught.value.message
    assert caret is None or caught.value.excerpt.endswith(f" {caret}")


def test_the_mistakes_of_several_steps_are_reported_together(tmp_path):
    (tmp_path / "job.yaml").write_text(
        "steps:\n  - {widen: a, noise: much}\n  - {widen: b, factor: 2}\n  - {push: b}\n"
    )
    with pytest.raises(RunError) as caught:
        read_job(tmp_path / "job.yaml")
    assert re.search(r"job.yaml:2: `much` is not a number\n.*\n +\^+\n.*job.yaml:4: `push` has no", caught.value.text)
    assert caught.value.excerpt.endswith("hint: add `to: ORG/NAME`")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps:\n  - {widen: nowhere, factor: 2}", "step 1 (widen): no checkpoint at"),
        (
            "steps:\n  - {widen: narrow, factor: 2}\n  - {widen: narrow, axis: ffn=2, output: narrow-x2}",
            "two steps write",
        ),
        ("steps:\n  - {push: narrow-x2, to: me/x}\n  - {widen: narrow, factor: 2}", "no earlier step writes it"),
        ("steps:\n  - {verify: narrow}", "was not written by mupscale"),
        ("steps:\n  - {widen: narrow, factor: 2, output: narrow}", "mupscale did not write it"),
    ],
)
def test_impossible_steps_are_reported_before_any_step_runs(text, message, folder):
    result, _, error = job(folder, text)
    assert result.code == 2
    assert message in error["message"]
    assert {path.name for path in folder.iterdir()} == {"narrow", "job.yaml"}


def test_a_step_accepts_the_options_of_its_command():
    given = {}
    for command, parameter in options_of():
        given.setdefault(command, set()).update(
            option.lstrip("-") for option in parameter.opts if option.startswith("--")
        )
    shared = {"json", "quiet", "verbose", "debug", "color", "log-file", "help", "dry-run"}
    pushing = {"push-to-hub", "push-revision", "private", "create-pr", "commit-message", "with-optimizer"}
    assert set(OPTIONS["widen"]) == given["widen"] - shared - pushing - {
        "resume",
        "tensor",
        "processes",
    }  # a job always resumes
    assert set(OPTIONS["verify"]) == given["verify"] - shared - {"report", "overwrite"} | {"narrow"}
    assert set(OPTIONS["push"]) == given["push"] - shared | {"to"}


def test_plan_job_plans_a_step_from_the_plan_of_an_earlier_one(folder):
    steps = (WidenStep("narrow", WidenOptions(factor=2)), WidenStep("narrow-x2", WidenOptions(axes={"ffn": 2})))
    planned = plan_job(steps)
    assert [step.status for step in planned.steps] == ["to do", "to do"]
    assert planned.steps[1].plan.num_parameters[0] == planned.steps[0].plan.num_parameters[1]
    assert planned.memory_bytes > 0
