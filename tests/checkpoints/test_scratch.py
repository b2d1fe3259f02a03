"""Temporary folders, and which of those that killed runs left behind are removed."""

import os
import shutil
import tempfile

import pytest

from mupscale_cli.checkpoints import scratch
from mupscale_cli.checkpoints.lock import release, try_lock
from mupscale_cli.checkpoints.scratch import scratch_folder

MARKER = ".mupscale-scratch"


def folder_with(path, *names):
    path.mkdir()
    for name in names:
        (path / name).write_text("")
    return path


def test_only_abandoned_temporary_folders_are_removed(tmp_path):
    left = folder_with(tmp_path / ".mupscale-left", "x", MARKER)  # its process has ended
    used = folder_with(tmp_path / ".mupscale-used", "x", MARKER)
    plain = folder_with(tmp_path / ".mupscale-cache", "x")
    locked = folder_with(tmp_path / ".mupscale-notes", "x", ".lock")  # another program's, or a user's
    lock = try_lock(used / MARKER)
    with scratch_folder(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert not left.exists()
        for other in (used, plain, locked):
            assert (other / "x").exists(), other
    assert not folder.exists()
    release(lock)


def test_a_folder_of_a_user_in_the_systems_temporary_folder_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = folder_with(tmp_path / "mupscale-experiments", "thesis", ".lock")
    with scratch_folder() as folder:
        assert folder.parent == tmp_path
    assert sorted(path.name for path in mine.iterdir()) == [".lock", "thesis"]


def test_links_to_a_marker_do_not_make_a_folder_ours(tmp_path):
    precious = folder_with(tmp_path / "precious", "thesis")
    marker = tmp_path / "marker"
    marker.write_text("not empty")
    linking = folder_with(tmp_path / ".mupscale-linking", "thesis")
    (linking / MARKER).symlink_to(marker)
    (precious / MARKER).write_text("")
    (tmp_path / ".mupscale-link").symlink_to(precious)
    with scratch_folder(tmp_path):
        pass
    assert (precious / "thesis").exists()
    assert (linking / "thesis").exists()
    assert marker.read_text() == "not empty"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users are those of Unix")
def test_the_folder_of_another_user_stays(tmp_path, monkeypatch):
    other = folder_with(tmp_path / ".mupscale-other", "x", MARKER)
    monkeypatch.setattr(scratch.os, "geteuid", lambda: other.stat().st_uid + 1)
    with scratch_folder(tmp_path):
        pass
    assert (other / "x").exists()


def test_an_interrupted_clean_up_is_finished_by_the_next_run(tmp_path, monkeypatch):
    left = folder_with(tmp_path / ".mupscale-left", "a", MARKER)
    folder_with(left / "deep", "b")

    def interrupted(_path):
        raise OSError("a file is still open")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with scratch_folder(tmp_path):
            pass
    assert (left / "deep" / "b").exists()
    with scratch_folder(tmp_path):
        assert not left.exists()
