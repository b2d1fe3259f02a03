"""The paths that an output takes: none is an input, and none is replaced that mupscale did not write."""

import os
import shutil
import time
from pathlib import Path

import pytest

import forked
from cli_runner import run
from helpers import save_mlp
from mupscale_cli.checkpoints.lock import release, try_lock
from mupscale_cli.checkpoints.target import check_output
from mupscale_cli.errors import OutputError, OutputExistsError
from mupscale_cli.tasks.widen import widen
from training import save_state


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return save_state(tmp_path_factory.mktemp("trained") / "narrow", "torch")


@pytest.fixture
def net(trained, tmp_path):
    """A single weight file with its companions."""
    for name in ("model.safetensors", "config.json", "optimizer.pt"):
        shutil.copy(trained / name, tmp_path / f"net.{name.removeprefix('model.')}")
    return tmp_path / "net.safetensors"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(tmp_path, *arguments, **options):
    """Check that a widening is refused and changes nothing; return the message."""
    before = contents(tmp_path)
    with pytest.raises(OutputError) as error:
        widen(*arguments, verify=False, **options)
    assert contents(tmp_path) == before
    return str(error.value)


def test_companions_of_the_source_are_not_replaced(net, tmp_path):
    for overwrite in (False, True):
        message = refused(tmp_path, net, tmp_path / "net.st", 2, overwrite=overwrite)
        assert "net.config.json`, which is an input" in message
        assert "--overwrite" not in message


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["wide.config.json", "wide.optimizer.pt"])
def test_a_directory_in_the_way_of_a_companion_is_found_before_the_first_byte(overwrite, name, net, tmp_path):
    if overwrite:
        widen(net, tmp_path / "wide.safetensors", 2, verify=False)
        (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    message = refused(tmp_path, net, tmp_path / "wide.safetensors", 2, overwrite=overwrite)
    assert (f"{name}` is a folder, and the output is a file" if overwrite else f"{name}` already exists\n") in message


def test_a_file_that_mupscale_did_not_write_is_not_replaced(net, tmp_path):
    save_mlp(tmp_path / "mine.safetensors")
    message = refused(tmp_path, net, tmp_path / "mine.safetensors", 2, overwrite=True)
    assert "its header has no record" in message
    (tmp_path / "thesis.txt").write_text("words")
    assert "was not written by mupscale" in refused(tmp_path, net, tmp_path / "thesis.txt", 2, overwrite=True)


def test_a_directory_with_files_that_mupscale_did_not_write_is_not_replaced(trained, tmp_path):
    wide = tmp_path / "wide"
    widen(trained, wide, 2, verify=False, max_shard_size=4000)
    widen(trained, wide, 3, verify=False, overwrite=True)
    (wide / "runs").mkdir()
    (wide / "runs" / "log.txt").write_text("mine")
    (wide / "notes.txt").write_text("mine")
    message = refused(tmp_path, trained, wide, 2, overwrite=True)
    assert "would delete them: `notes.txt`, `runs`" in message


@pytest.mark.parametrize("name", [".", "/", "", ".."])
def test_an_output_needs_a_name(name, net, tmp_path, monkeypatch):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    assert "not a name for an output" in refused(tmp_path, net, name, 2)


def test_a_companion_that_mupscale_did_not_write_is_not_replaced(net, tmp_path):
    (tmp_path / "wide.config.json").write_text("mine")
    target = tmp_path / "wide.safetensors"
    assert "already exists" in refused(tmp_path, net, target, 2)
    assert "no existing output has a record that names it" in refused(tmp_path, net, target, 2, overwrite=True)
    (tmp_path / "wide.config.json").unlink()
    widen(net, target, 2, verify=False, optimizer="none")
    (tmp_path / "wide.optimizer.pt").write_text("mine")
    assert "wide.optimizer.pt` was not written" in refused(tmp_path, net, target, 2, overwrite=True)


def test_companions_of_the_replaced_output_go_with_it(net, tmp_path):
    target = tmp_path / "wide.safetensors"
    widen(net, target, 2, verify=False)
    assert (tmp_path / "wide.optimizer.pt").exists()
    widen(net, target, 3, verify=False, optimizer="none", overwrite=True)
    assert not (tmp_path / "wide.optimizer.pt").exists()
    assert (tmp_path / "wide.config.json").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("kind", ["weights", "hard link", "recipe", "state"])
def test_inputs_inside_the_replaced_output_are_found(kind, trained, tmp_path):
    wide = tmp_path / "wide"
    widen(trained, wide, 2, verify=False)
    source, options = shutil.copytree(trained, tmp_path / "narrow"), {}
    if kind in ("weights", "hard link"):
        kept = wide / "kept.safetensors"
        (source / "model.safetensors").rename(kept)
        if kind == "weights":
            (source / "model.safetensors").symlink_to(kept)
        else:
            os.link(kept, source / "model.safetensors")
    elif kind == "recipe":
        shutil.copy(Path(__file__).parents[2] / "recipes" / "llama.yaml", wide / "own.yaml")
        options["recipe"] = wide / "own.yaml"
    else:
        options["optimizer"] = shutil.move(source / "optimizer.pt", wide / "before.pt")
    message = refused(tmp_path, source, wide, 2, overwrite=True, **options)
    assert "which is an input" in message


def test_a_directory_made_from_the_hub_is_replaced(trained, tmp_path):
    """The source of a model on the Hub is no path before the download."""
    widen(trained, tmp_path / "wide", 2, verify=False)
    check_output(tmp_path / "wide", Path("org/name"), needed_bytes=0, overwrite=True)
    with pytest.raises(OutputExistsError):
        check_output(tmp_path / "wide", Path("org/name"), needed_bytes=0, overwrite=False)


WAITING = """
import sys
from mupscale_cli.checkpoints.staging import Staging
publish = Staging.publish
def waiting(*arguments, **options):
    print("ready", flush=True)
    sys.stdin.readline()
    publish(*arguments, **options)
Staging.publish = waiting
"""


def test_of_two_runs_to_one_file_one_wins(net, tmp_path):
    target = tmp_path / "wide.safetensors"
    arguments = ["widen", str(net), "--factor", "2", "-o", str(target), "--no-verify", "--quiet"]
    runs = [forked.start(*arguments, code=WAITING) for _ in range(2)]
    for each in runs:
        assert each.stdout.readline() == "ready\n"  # both have passed all checks
    for each in runs:
        each.stdin.write("\n")
        each.stdin.flush()
    errors = [each.communicate()[1] for each in runs]
    codes = [each.returncode for each in runs]
    assert sorted(codes) == [0, 2], errors
    assert "already exists" in errors[codes.index(2)]
    assert sorted(path.name for path in tmp_path.glob("*wide*")) == [
        "wide.config.json",
        "wide.optimizer.pt",
        "wide.safetensors",
    ]
    assert run("verify", str(target), "--only", "weights").code == 0


def test_runs_publish_one_after_the_other(net, tmp_path):
    """Another run that is renaming its parts is waited for."""
    lock = try_lock(tmp_path / ".wide.safetensors.publishing")
    options = ["--factor", "2", "--no-verify", "-o", "wide.safetensors"]
    process = forked.start("widen", str(net), *options, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".wide.safetensors.partial-*/output/optimizer.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    assert process.poll() is None
    assert not (tmp_path / "wide.safetensors").exists()
    release(lock)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert not list(tmp_path.glob(".wide*"))


def test_an_output_that_appears_during_the_run_is_kept(net, tmp_path, monkeypatch):
    target = tmp_path / "wide.safetensors"
    monkeypatch.setattr(
        "mupscale_cli.tasks.widen._verify", lambda *_, **__: (target.write_text("mine"), (None, "no"))[1]
    )
    with pytest.raises(OutputExistsError):
        widen(net, target, 2)
    assert target.read_text() == "mine"
    assert not list(tmp_path.glob(".wide*"))
