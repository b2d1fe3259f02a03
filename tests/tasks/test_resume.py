"""Killed, interrupted and starved runs leave nothing under the final name and can be resumed."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

import forked
import mupscale_cli.checkpoints.staging as target_module
from cli_runner import run
from mupscale_cli.checkpoints.header import replace_metadata
from mupscale_cli.checkpoints.lock import release, try_lock
from mupscale_cli.checkpoints.staging import recover
from mupscale_cli.engine import shards
from mupscale_cli.engine.events import Events
from mupscale_cli.errors import CheckpointError, OutputError
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen

SHARD = 30_000
MOST = 3 if sys.platform == "linux" else 1  # processes that share the writing
# A child that prints a line for each block and writes slowly, so that the test can stop it at any moment.
SLOW = """
import time
import mupscale_cli.engine.streaming as streaming
write = streaming._expand
def slow(*arguments):
    print("block", flush=True)
    time.sleep({pause})
    return write(*arguments)
streaming._expand = slow
"""
# After some blocks, no file may grow beyond a header, as on a full disk.
FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
blocks = []
def full(*arguments):
    blocks.append(1)
    if len(blocks) == 15:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    return slow(*arguments)
streaming._expand = full
"""


def contents(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def arguments(source, target, *more):
    return [str(source), "-o", str(target), "--factor", "2", "--max-shard-size", "30KB", "--no-verify", *more]


def start(source, target, *more, pause=0.005, code=""):
    return forked.start("widen", *arguments(source, target, *more), code=SLOW.format(pause=pause) + code)


def partial(target):
    return [path for path in target.parent.iterdir() if ".partial-" in path.name]


def finished(folder):
    """Return the shards that the journals of all processes list."""
    journals = [json.loads(file.read_text()) for file in folder.glob(".mupscale-journal*.json")]
    return {shard["file"] for journal in journals for shard in journal["shards"]}


@pytest.fixture(scope="module")
def undisturbed(saved, tmp_path_factory):
    target = tmp_path_factory.mktemp("undisturbed") / "wide"
    widen(saved("Llama-tied"), target, 2, max_shard_size=SHARD, verify=False)
    return contents(target)


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of a model that a test may change."""
    return lambda case: shutil.copytree(saved(case), tmp_path / "narrow")


def same_but_record(found, expected):
    """Check that two outputs are equal except for the record, which contains a relative path of the source."""
    assert {**found, "mupscale.json": ""} == {**expected, "mupscale.json": ""}


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 52), marks=pytest.mark.slow)], ids=["a-few", "many"])
def test_a_killed_run_leaves_nothing_and_is_resumed_to_the_same_bytes(seeds, saved, tmp_path, undisturbed):
    for seed in seeds:
        target = tmp_path / f"wide{seed}"
        moments = random.Random(seed)
        for _ in range(3):  # kill resumed runs as well
            process = start(saved("Llama-tied"), target, "--resume", "--processes", str(moments.randint(1, MOST)))
            process.stdout.readline()
            time.sleep(moments.random() * 0.15)
            process.kill()
            process.communicate()
            assert process.returncode in (0, -signal.SIGKILL)
            if process.returncode == 0 or target.exists():
                break
        if target.exists():
            recover(target, lambda _: None)  # as the next run does, if the kill came between publishing and clearing up
        else:
            widen(saved("Llama-tied"), target, 2, max_shard_size=SHARD, verify=False, resume=True)
        same_but_record(contents(target), undisturbed)
        assert not partial(target)


def stop_after(num_shards):
    """Return events that interrupt the run after a number of written shards."""
    phases, seen = [], []

    def advance(count):
        if phases[-1] == "widening":
            seen.append(count)
        if sum(seen) > num_shards * SHARD:
            raise KeyboardInterrupt

    return Events(phase=lambda name, _: phases.append(name), advance=advance)


def interrupted(source, target, **options):
    with pytest.raises(KeyboardInterrupt) as error:
        widen(source, target, 2, max_shard_size=SHARD, verify=False, events=stop_after(3), **options)
    (folder,) = partial(target)
    return folder, error.value


def test_finished_shards_are_not_rewritten(saved, tmp_path, undisturbed, monkeypatch):
    source, target = saved("Llama-tied"), tmp_path / "wide"
    folder, error = interrupted(source, target)
    assert "--resume" in error.resume_hint
    reused = finished(folder)
    assert reused
    made = []
    writer = shards.ShardWriter

    def counted(file, *rest, **keywords):
        made.append(file.name)
        return writer(file, *rest, **keywords)

    monkeypatch.setattr(shards, "ShardWriter", counted)
    widen(source, target, 2, max_shard_size=SHARD, verify=False, resume=True)
    assert made
    assert not reused & set(made)
    same_but_record(contents(target), undisturbed)


def test_a_deeper_model_is_resumed_to_the_same_bytes(saved, tmp_path):
    source, target = saved("Llama-tied"), tmp_path / "wide"
    widen(source, tmp_path / "undisturbed", 2, layers=5, max_shard_size=SHARD, verify=False)
    folder, _ = interrupted(source, target, layers=5)
    assert finished(folder)
    widen(source, target, 2, layers=5, max_shard_size=SHARD, verify=False, resume=True)
    same_but_record(contents(target), contents(tmp_path / "undisturbed"))


def test_a_changed_finished_shard_is_rewritten(saved, tmp_path, undisturbed):
    source, target = saved("Llama-tied"), tmp_path / "wide"
    folder, _ = interrupted(source, target)
    shard = min(folder.glob("output/*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    notes = []
    widen(source, target, 2, max_shard_size=SHARD, verify=False, resume=True, events=Events(note=notes.append))
    same_but_record(contents(target), undisturbed)
    (note,) = notes
    pattern = r"reusing \d of \d+ files from the interrupted run; rewriting 1 that changed since"
    assert re.fullmatch(pattern, note)


def test_shards_of_a_changed_source_are_rewritten(saved, tmp_path, copied):
    source, target = copied("Llama-tied"), tmp_path / "wide"
    interrupted(source, target)
    tensors = load_file(source / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, source / "model.safetensors", {"format": "pt"})
    widen(source, target, 2, max_shard_size=SHARD, verify=False, resume=True)
    widen(source, tmp_path / "again", 2, max_shard_size=SHARD, verify=False)
    assert contents(target) == contents(tmp_path / "again")


def test_another_plan_is_not_resumed(saved, tmp_path):
    source, target = saved("Llama-tied"), tmp_path / "wide"
    folder, _ = interrupted(source, target)
    notes = []
    events = Events(note=notes.append, warn=notes.append)
    widen(source, target, 3, max_shard_size=SHARD, verify=False, resume=True, events=events)
    widen(source, tmp_path / "again", 3, max_shard_size=SHARD, verify=False)
    assert contents(target) == contents(tmp_path / "again")
    widen(source, target, 2, max_shard_size=SHARD, verify=False, overwrite=True, events=events)
    other, unused = notes  # both about the folder, which the second run makes useless
    assert str(folder) in other
    assert "with another source or other options" in other
    assert "`--resume` continues" in unused
    assert not folder.exists()


def test_a_run_that_refuses_what_the_killed_one_allowed_does_not_resume_it(copied, tmp_path):
    source, target = copied("Llama-tied"), tmp_path / "wide"
    tensors = load_file(source / "model.safetensors")
    tensors["model.embed_tokens.weight"][0, 0] = float("nan")
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    options = {"max_shard_size": SHARD, "verify": False}
    with pytest.raises(KeyboardInterrupt):
        widen(source, target, 2, **options, allow_nonfinite=True, events=stop_after(3))
    (folder,) = partial(target)
    with pytest.raises(CheckpointError, match=r"nan|NaN"):
        widen(source, target, 2, **options, resume=True)
    assert partial(target) == [folder]
    widen(source, target, 2, **options, allow_nonfinite=True, resume=True)
    assert target.is_dir()


def test_a_note_promises_only_what_resume_does(saved, tmp_path):
    source, target = saved("Llama-tied"), tmp_path / "wide"
    folder, _ = interrupted(source, target)
    notes = []
    widen(source, target, 3, max_shard_size=SHARD, verify=False, events=Events(warn=notes.append))
    (note,) = notes
    assert str(folder) in note
    assert "with another source or other options" in note
    assert "--resume" not in note


@pytest.mark.parametrize("content", [b"{}", b'{"fingerprint": 5, "shards": []}', None], ids=["empty", "wrong", "pipe"])
def test_a_damaged_journal_is_one_message(content, saved, tmp_path):
    source, target = saved("Llama-tied"), tmp_path / "wide"
    folder, _ = interrupted(source, target)
    journal = folder / ".mupscale-journal.json"
    journal.unlink()
    if content is not None:
        journal.write_bytes(content)
    elif hasattr(os, "mkfifo"):
        os.mkfifo(journal)
    else:
        pytest.skip("pipes with names are part of POSIX")
    result = run("widen", *arguments(source, target, "--resume"))
    assert result.code == 2
    assert result.err.count("error:") == 1
    assert "Traceback" not in result.err
    assert folder.is_dir()
    result = run("widen", *arguments(source, target))  # does not depend on it, and names it
    assert result.code == 0
    assert folder.name in result.err.replace("\n", "")


def test_an_unreadable_unfinished_output_is_ignored(saved, tmp_path, monkeypatch):
    folder, _ = interrupted(saved("Llama-tied"), tmp_path / "wide")
    locked = target_module.try_lock

    def refused(file):
        if file.parent == folder:
            raise PermissionError(13, "Permission denied")
        return locked(file)

    monkeypatch.setattr(target_module, "try_lock", refused)
    widen(saved("Llama-tied"), tmp_path / "wide", 2, max_shard_size=SHARD, verify=False)
    assert (tmp_path / "wide").is_dir()


@pytest.mark.parametrize("processes", [1, MOST])
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_a_stopped_run_says_how_to_resume(stop, code, processes, saved, tmp_path, undisturbed):
    target = tmp_path / "wide"
    process = start(saved("Llama-tied"), target, "--quiet", "--processes", str(processes), pause=0.1)
    while not any(finished(folder) for folder in partial(target)):
        assert process.stdout.readline()
    process.send_signal(stop)
    _, errors = process.communicate()
    assert process.returncode == code
    assert "Traceback" not in errors
    assert "--resume" in errors
    assert not target.exists()
    result = run("widen", *arguments(saved("Llama-tied"), target, "--resume"))
    assert result.code == 0, result.err
    same_but_record(contents(target), undisturbed)


def test_two_runs_at_once_do_not_share_a_folder(saved, tmp_path):
    source, target = saved("Llama-tied"), tmp_path / "wide"
    first = start(source, target, pause=0.2)
    first.stdout.readline()
    second = run("widen", *arguments(source, target, "--resume"))
    assert second.code == 2
    assert "another run is writing" in second.err
    third = run("widen", *arguments(source, target))  # without --resume, both write and the first to finish wins
    assert third.code == 0
    _, errors = first.communicate()
    assert first.returncode == 2, errors
    assert "exists" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["wide"]


@pytest.mark.skipif(not hasattr(os, "pwritev"), reason="the limit is one of POSIX")
@pytest.mark.parametrize("processes", [1, MOST])
def test_finished_shards_are_kept_when_the_disk_is_full(processes, saved, tmp_path, undisturbed):
    target = tmp_path / "wide"
    process = start(saved("Llama-tied"), target, "--processes", str(processes), code=FULL, pause=0)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "cannot write" in errors
    assert not target.exists()
    assert partial(target)
    assert "--resume" in errors
    widen(saved("Llama-tied"), target, 2, max_shard_size=SHARD, verify=False, resume=True)
    same_but_record(contents(target), undisturbed)


def test_a_source_that_shrinks_during_reading_is_reported(copied, tmp_path):
    source = copied("Llama-tied")

    def shrink(_count):
        os.truncate(source / "model.safetensors", 6000)

    with pytest.raises(CheckpointError, match="changed while it was read"):
        widen(source, tmp_path / "wide", 2, max_shard_size=SHARD, verify=False, events=Events(advance=shrink))
    assert not (tmp_path / "wide").exists()
    assert not partial(tmp_path / "wide")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_output_path_is_refused(saved, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="written to"):
        widen(saved("Llama-tied"), tmp_path / "wide", 2, verify=False)


def test_a_lock_ends_with_its_holder(tmp_path):
    lock = try_lock(tmp_path / "lock")
    assert try_lock(tmp_path / "lock") is None
    release(lock)
    assert not (tmp_path / "lock").exists()
    release(try_lock(tmp_path / "lock"))


def test_verify_reports_a_changed_file(copied, tmp_path):
    source, target = copied("Llama-tied"), tmp_path / "wide"
    widen(source, target, 2, verify=False)
    replace_metadata(target / "model.safetensors", {"format": "pt", "by": "someone"})  # which no output depends on
    assert verify(target).files.differences == ("`by` is not in the plan in `model.safetensors`",)
