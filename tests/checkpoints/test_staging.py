"""Output that appears only when it is complete, and what the next run makes of a folder that a killed run left."""

import json
import os
from pathlib import Path

import pytest

from mupscale_cli.checkpoints import publication as publishing
from mupscale_cli.checkpoints.journal import JOURNAL, FinishedShard
from mupscale_cli.checkpoints.lock import release, try_lock
from mupscale_cli.checkpoints.output_files import replace_json
from mupscale_cli.checkpoints.publication import PUBLICATION
from mupscale_cli.checkpoints.reading import open_checkpoint
from mupscale_cli.checkpoints.staging import recover, stage, unfinished
from mupscale_cli.errors import CheckpointError, OutputError, OutputExistsError

FILE_PARTS = {"w.st": "model", "w.config.json": "config.json"}


def staged(output, *, resume=False, keep=False):
    return stage(output, "wanted", resume=resume, keep=lambda *_: keep)


def write(staging, text="new"):
    for name in ("model", "config.json"):
        (staging.content / name).write_text(f"{text} {name}")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def texts(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def notes_of(output):
    notes = []
    recover(output, notes.append)
    return notes


@pytest.mark.parametrize("error", [OutputError("full"), KeyboardInterrupt(), SystemExit(143)])
def test_a_failed_run_leaves_nothing_behind(error, tmp_path):
    with pytest.raises(type(error)), staged(tmp_path / "out") as staging:
        write(staging)
        raise error
    assert names(tmp_path) == []


def test_an_error_says_what_is_under_the_final_name(tmp_path):
    with pytest.raises(OutputError) as new, staged(tmp_path / "out"):
        raise OutputError("full")
    (tmp_path / "old").mkdir()
    with pytest.raises(OutputError) as old, staged(tmp_path / "old"):
        raise OutputError("full")
    assert new.value.hint == f"no `{tmp_path / 'out'}` was created"
    assert old.value.hint == f"the existing `{tmp_path / 'old'}` is unchanged"


def test_a_directory_is_published_as_a_whole(tmp_path):
    with staged(tmp_path / "deep" / "out") as staging:
        write(staging)
        assert not staging.output.exists()
        staging.publish({"out": ""}, overwrite=False)
        assert try_lock(staging.folder / ".lock") is None
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["config.json", "model"]


@pytest.mark.parametrize("parts", [{"w.st": ""}, FILE_PARTS], ids=["directory", "file"])
@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "rename"])
def test_an_output_that_appears_meanwhile_is_not_replaced(parts, exchanges, tmp_path, monkeypatch):
    if not exchanges:
        monkeypatch.setattr("mupscale_cli.checkpoints.renaming._rename", lambda *_: False)
    (tmp_path / "w.st").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"w\.st` already exists"), staged(tmp_path / "w.st") as staging:
        write(staging)
        staging.publish(parts, overwrite=False)
    assert texts(tmp_path) == {"w.st": "mine"}


def test_of_two_runs_that_publish_at_once_one_wins(tmp_path, monkeypatch):
    """The other output appears between the check and the last rename."""
    rename = publishing.rename_new

    def late(source, target):
        if target.name == "w.st":
            target.write_text("other")
        rename(source, target)

    monkeypatch.setattr(publishing, "rename_new", late)
    with pytest.raises(OutputExistsError), staged(tmp_path / "w.st") as staging:
        write(staging)
        staging.publish(FILE_PARTS, overwrite=False)
    assert texts(tmp_path) == {"w.st": "other"}


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "rename"])
def test_a_directory_is_replaced(exchanges, tmp_path, monkeypatch):
    if not exchanges:
        monkeypatch.setattr("mupscale_cli.checkpoints.renaming._rename", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with staged(tmp_path / "out") as staging:
        write(staging)
        staging.publish({"out": ""}, overwrite=True)
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json", "model"]


def test_a_companion_that_the_new_output_lacks_is_removed(tmp_path):
    for name in ("w.st", "w.config.json", "w.optimizer.pt", "w.txt"):
        (tmp_path / name).write_text("old")
    with staged(tmp_path / "w.st") as staging:
        write(staging)
        staging.publish({**FILE_PARTS, "w.optimizer.pt": None}, overwrite=True)
    assert texts(tmp_path) == {"w.st": "new model", "w.config.json": "new config.json", "w.txt": "old"}


class Killed(BaseException):
    """Ends a run without any clean-up."""


def kill(tmp_path, monkeypatch, *, at, parts=FILE_PARTS, exchanges=True):
    """Leave what a run leaves that is killed at a step of its publication; return whether it got there."""
    steps = iter(range(100))

    def step(call):
        def counted(*arguments):
            if next(steps) == at:
                raise Killed
            return call(*arguments)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "rename_new", step(publishing.rename_new))
        patch.setattr(publishing, "exchange", step(publishing.exchange) if exchanges else lambda *_: False)
        patch.setattr(publishing, "flush", step(publishing.flush))
        patch.setattr(os, "rename", step(os.rename))
        patch.setattr(publishing.Publication, "restore", lambda _: None)
        patch.setattr("mupscale_cli.checkpoints.staging._remove", lambda *_: None)
        try:
            with staged(tmp_path / "w.st", keep=True) as staging:
                write(staging)
                staging.journal.note(FinishedShard("model", "0", {}, {}, []))
                staging.publish(parts, overwrite=True)
        except Killed:
            return True
        finally:
            staging.lock.release()
    return False


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "rename"])
@pytest.mark.parametrize("parts", [FILE_PARTS, {"w.st": ""}], ids=["file", "directory"])
@pytest.mark.parametrize("has_old", [True, False], ids=["overwrite", "new"])
def test_the_next_run_restores_or_completes_what_a_killed_one_published(
    parts, exchanges, has_old, tmp_path, monkeypatch
):
    outcomes = set()
    for at in range(20):
        where = tmp_path / str(at)
        where.mkdir()
        if has_old and parts == FILE_PARTS:
            (where / "w.st").write_text("old")
            (where / "w.config.json").write_text("old")
        elif has_old:
            (where / "w.st").mkdir()
            (where / "w.st" / "model").write_text("old")
        before = tree(where)
        if not kill(where, monkeypatch, at=at, parts=parts, exchanges=exchanges):
            break
        (note,) = notes_of(where / "w.st")
        after = tree(where)
        is_new = "new model" in {text for path, text in after.items() if ".partial" not in path}
        outcomes.add(is_new)
        if is_new:
            assert "after it had published" in note
            assert not any(".partial" in path or text == "old" for path, text in after.items())
        else:
            assert {path: text for path, text in after.items() if ".partial" not in path} == before
            left = {Path(path).name for path in after if ".partial" in path}
            assert left == {".lock", JOURNAL, "model", "config.json"}  # to resume
            if at:
                assert "the previous state is restored" in note
    assert at > 2
    assert outcomes == {False, True}


def tree(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"parts": []}',
        '{"parts": 1}',
        '{"parts": [1]}',
        '{"parts": [{"name": "../x", "staged": "output", "inode": 1}]}',
        '{"parts": [{"name": "x", "staged": "../../x", "inode": 1}]}',
        '{"parts": [{"name": "x", "staged": "output", "inode": true}]}',
        '{"parts": [{"name": "x", "staged": "output"}]}',
    ],
)
def test_a_damaged_publication_moves_nothing(content, tmp_path):
    folder = tmp_path / ".out.partial-01234567"
    folder.mkdir()
    (folder / JOURNAL).write_text("{}")
    (folder / PUBLICATION).write_text(content)
    with pytest.raises(CheckpointError, match="publication"):
        recover(tmp_path / "out", print)
    assert names(folder) == [".lock", JOURNAL, PUBLICATION]


def test_a_restoration_that_is_impossible_keeps_everything(tmp_path, monkeypatch):
    (tmp_path / "w.st").write_text("old")
    (tmp_path / "w.config.json").write_text("old")
    assert kill(tmp_path, monkeypatch, at=4)  # while the new parts appear
    (tmp_path / "w.st").write_text("mine")
    with pytest.raises(OutputError, match=r"cannot restore .*w\.st") as error:
        recover(tmp_path / "w.st", print)
    assert ".partial-" in error.value.hint
    texts_left = sorted(text for path, text in tree(tmp_path).items() if not Path(path).name.startswith("."))
    assert texts_left == ["mine", "new config.json", "new model", "old", "old"]
    (tmp_path / "w.st").unlink()
    recover(tmp_path / "w.st", print)
    assert (tmp_path / "w.st").read_text() == (tmp_path / "w.config.json").read_text() == "old"


def test_a_set_aside_output_is_found_by_who_looks_for_it(tmp_path, monkeypatch):
    (tmp_path / "w.st").write_text("old")
    with pytest.raises(CheckpointError, match="a Hub id"):
        open_checkpoint(tmp_path / "other.st")
    assert kill(tmp_path, monkeypatch, at=2)
    with pytest.raises(CheckpointError, match=r"no checkpoint .*\n.*killed while it replaced it.*\.partial-"):
        open_checkpoint(tmp_path / "w.st")
    recover(tmp_path / "w.st", print)
    assert (tmp_path / "w.st").read_text() == "old"


def test_folders_that_no_run_made_are_not_touched(tmp_path):
    for name in (".out.partial-01234567", ".out.partial-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("words")
    assert notes_of(tmp_path / "out") == []
    with staged(tmp_path / "out", resume=True) as staging:
        assert list(unfinished(staging)) == []
    assert all(names(folder) == ["thesis"] for folder in tmp_path.iterdir())


def left_behind(output, *shards):
    """Leave the folder of a run that was killed after it finished some shards."""
    with pytest.raises(Killed), staged(output, keep=True) as staging:
        write(staging)
        for name in shards:
            staging.journal.note(FinishedShard(name, "0", {}, {}, []))
        raise Killed
    return staging.folder


def test_a_folder_without_finished_shards_is_removed_and_named(tmp_path):
    folder = left_behind(tmp_path / "out")
    (tmp_path / ".out.partial-01234567").mkdir()
    assert {str(folder) in note for note in notes_of(tmp_path / "out")} == {True, False}
    assert names(tmp_path) == []


def test_a_folder_with_finished_shards_is_kept_until_it_is_resumed(tmp_path):
    folder = left_behind(tmp_path / "out", "model")
    assert notes_of(tmp_path / "out") == []
    with staged(tmp_path / "out") as other:
        ((found, num_bytes, fingerprint),) = unfinished(other)
        assert (found, fingerprint) == (folder, "wanted")
        assert num_bytes > len("new model")
    with staged(tmp_path / "out", resume=True) as staging:
        assert staging.folder == folder
        staging.clear()
        assert names(staging.content) == ["model"]
        with pytest.raises(OutputError, match="another run is writing"), staged(tmp_path / "out", resume=True):
            pass
    assert names(tmp_path) == []


def test_a_published_output_leaves_no_folder_of_killed_runs_that_wrote_the_same(tmp_path):
    for _ in range(2):
        left_behind(tmp_path / "out", "model")
    with pytest.raises(Killed), stage(tmp_path / "out", "other", resume=False, keep=lambda *_: True) as other:
        other.journal.note(FinishedShard("model", "0", {}, {}, []))
        raise Killed
    with staged(tmp_path / "out", resume=True) as staging:
        write(staging)
        staging.publish({"out": ""}, overwrite=False)
    assert names(tmp_path) == sorted([other.folder.name, "out"])


def test_a_run_can_be_resumed_while_another_one_publishes(tmp_path, monkeypatch):
    """A run that starts between the flush and the rename of another does not take its folder."""
    refused = []
    publish = publishing.Publication.publish

    def interrupted(self, *, overwrite):
        assert notes_of(tmp_path / "out") == []
        with pytest.raises(OutputError, match="another run is writing") as error:
            staged(tmp_path / "out", resume=True).__enter__()
        refused.append(error)
        publish(self, overwrite=overwrite)

    monkeypatch.setattr(publishing.Publication, "publish", interrupted)
    with staged(tmp_path / "out") as staging:
        write(staging)
        staging.publish({"out": ""}, overwrite=False)
    assert refused
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["config.json", "model"]


def test_a_lock_ends_with_its_holder(tmp_path):
    lock = try_lock(tmp_path / "lock")
    assert try_lock(tmp_path / "lock") is None
    release(lock)
    assert not (tmp_path / "lock").exists()
    release(try_lock(tmp_path / "lock"))


def test_json_is_replaced_atomically(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")
    with pytest.raises(TypeError):
        replace_json(file, {"a": object()})
    assert file.read_text() == "old"
    replace_json(file, {"a": 1})
    assert json.loads(file.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
