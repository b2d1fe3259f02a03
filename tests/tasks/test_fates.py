"""Files beside the weights, from the plan to the published output: written, recorded, verified, replaced, pushed."""

import json
import shutil

import pytest
import torch

from cli_runner import run
from mupscale_cli.checkpoints.fates import plan_files
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.optimizers.fates import why_no_state
from mupscale_cli.record.reading import read_record
from mupscale_cli.tasks.card import card_section
from mupscale_cli.tasks.push import push_files
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen
from training import save_training

TEMPLATE = "additional_chat_templates/rag.jinja"


@pytest.fixture(scope="module")
def source(saved, tmp_path_factory):
    """A model with files in subfolders: some that are carried, some that are not."""
    folder = shutil.copytree(saved("Llama-tied"), tmp_path_factory.mktemp("fates") / "narrow")
    for name in (TEMPLATE, "runs/a/events", "runs/b", "onnx/model.onnx", "README.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def wide(source, tmp_path):
    return widen(source, tmp_path / "wide", 2, verify=False).output


def test_subfolders_are_carried_and_recorded(wide):
    record = read_record(open_checkpoint(wide))
    assert (wide / TEMPLATE).read_text() == TEMPLATE
    assert not (wide / "runs").exists()
    assert TEMPLATE in record["others"]
    fates = {name: (entry["fate"], entry["files"]) for name, entry in record["fates"].items()}
    assert fates["additional_chat_templates/"] == ("carried", 1)
    assert fates["runs/"] == ("left behind", 2)
    assert fates["model.safetensors"] == ("widened", 1)
    assert fates["config.json"] == ("rewritten", 1)


def test_verify_finds_changed_missing_and_further_files_in_subfolders(wide):
    assert verify(wide, only=["files"]).agrees
    (wide / TEMPLATE).write_text(TEMPLATE.upper())
    (wide / "additional_chat_templates" / "own.jinja").write_text("x")
    differences = verify(wide, only=["files"]).files.differences
    assert len(differences) == 2
    assert "own.jinja` is not in the plan" in differences[0]
    assert "rag.jinja` differs from the source's" in differences[1]
    (wide / TEMPLATE).unlink()
    assert f"`{TEMPLATE}` is missing" in verify(wide, only=["files"]).files.differences


def test_verify_checks_the_recorded_fates(wide):
    record = json.loads((wide / "mupscale.json").read_text())
    record["fates"]["additional_chat_templates/"]["fate"] = "left behind"
    (wide / "mupscale.json").write_text(json.dumps(record))
    assert "additional_chat_templates/" in verify(wide, only=["files"]).files.differences[0]


def test_the_card_names_what_was_left_behind(wide):
    section = card_section(read_record(open_checkpoint(wide)), "wide")
    assert "- files carried unchanged: `additional_chat_templates/`, `generation_config.json`" in section
    assert "logs of the narrow model's training): `runs/`" in section


def test_an_output_with_subfolders_is_replaced_as_a_whole_or_not_at_all(source, wide):
    assert widen(source, wide, 3, verify=False, overwrite=True).output == wide
    assert (wide / TEMPLATE).read_text() == TEMPLATE
    (wide / "additional_chat_templates" / "mine.jinja").write_text("x")
    refused = run("widen", str(source), "--factor", "2", "-o", str(wide), "--no-verify", "--overwrite")
    assert refused.code == 2
    assert "additional_chat_templates/mine.jinja" in refused.err
    assert (wide / "additional_chat_templates" / "mine.jinja").exists()


def test_push_publishes_what_loaders_read_in_subfolders(wide):
    (wide / "runs").mkdir()
    (wide / "runs" / "x").write_text("log")
    files = push_files(open_checkpoint(wide), read_record(open_checkpoint(wide)), "me/wide", with_optimizer=False)
    assert {file.name for file in files} == {
        *("config.json", "generation_config.json", "model.safetensors", "mupscale.json", TEMPLATE)
    }


def test_every_file_is_shown_by_the_dry_run_and_left_ones_by_the_summary(source, tmp_path):
    shown = run("widen", str(source), "--factor", "2", "--dry-run").out
    assert all(name in shown for name in ("additional_chat_templates/", "runs/ (2 files)", "onnx/", "README.md"))
    assert "optimizer state: none found; training starts with fresh moments" in shown
    result = run("widen", str(source), "--factor", "2", "-o", str(tmp_path / "wide"), "--no-verify").out
    assert all(name in result for name in ("carried ", "runs/ (2 files)", "onnx/", "README.md", "none found"))


def test_accelerate_resumes_from_the_wide_folder(tmp_path):
    folder = save_training(tmp_path / "narrow", "Llama-tied", "adamw", dtype=torch.float32)
    (folder / "optimizer.pt").rename(folder / "optimizer.bin")
    for name in ("random_states_0.pkl", "sampler.bin", "dl_state_dict.bin", "custom_checkpoint_0.pkl", "scaler.pt"):
        (folder / name).write_bytes(name.encode())
    rates = {"last_epoch": 1, "base_lrs": [1e-3], "_last_lr": [5e-4]}
    torch.save(rates, folder / "scheduler.bin")
    wide = widen(folder, tmp_path / "wide", 2, verify=False).output
    assert (wide / "custom_checkpoint_0.pkl").read_bytes() == b"custom_checkpoint_0.pkl"
    groups = torch.load(wide / "optimizer.bin", weights_only=True)["param_groups"]
    scheduler = torch.load(wide / "scheduler.bin", weights_only=True)
    assert len(scheduler["base_lrs"]) == len(groups) > 1
    assert verify(wide, only=["files"]).agrees
    (wide / "sampler.bin").write_bytes(b"other")
    assert not verify(wide, only=["files"]).agrees


@pytest.mark.parametrize(
    ("names", "optimizer", "line"),
    [
        ([], "auto", "none found"),
        (["optimizer.pt"], "none", "--optimizer none"),
        (["global_step10/mp_rank_00_model_states.pt", "latest"], "auto", "`global_step10` is DeepSpeed's"),
        (["iter_0000010/x", "latest_checkpointed_iteration.txt"], "auto", "`iter_0000010` is Megatron's"),
    ],
)
def test_the_reason_for_a_missing_optimizer_state_is_given(names, optimizer, line):
    text = why_no_state(plan_files(dict.fromkeys(names, 1)), optimizer)
    assert line in text
    assert text.endswith("training starts with fresh moments")
