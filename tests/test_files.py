"""Plain files: what is refused, how much is read, and when a change is noticed."""

import errno
import os
import socket
from pathlib import Path

import pytest

from mupscale_cli import files
from mupscale_cli.errors import CheckpointError
from mupscale_cli.files import flush, flush_tree, identities, plain, read_text, require_unchanged

UNIX = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices in folders are those of Unix")
LINUX = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists a process's open files")


@UNIX
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device", "link"])
def test_only_plain_files_are_opened(kind, tmp_path):
    path = tmp_path / "x"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(path)  # opening it would wait for a writer
        elif kind == "socket":
            server.bind(os.path.relpath(path))  # its path may have 107 bytes
        elif kind == "folder":
            path.mkdir()
        else:
            path = Path("/dev/zero") if kind == "device" else path
            if kind == "link":
                path.symlink_to("/dev/zero")
        with pytest.raises(OSError) as error:  # noqa: PT011 (the message depends on the kind)
            read_text(path)
    assert error.value.filename == str(path)
    assert error.value.strerror == {
        "socket": "No such device or address",
    }.get(kind, f"it is a {'device' if kind == 'link' else kind}, expected a plain file")


def test_a_file_is_read_up_to_a_limit(tmp_path):
    (tmp_path / "x").write_text("12345")
    assert read_text(tmp_path / "x", 5) == "12345"
    with pytest.raises(OSError, match="larger than 4 B"):
        read_text(tmp_path / "x", 4)


def test_a_file_that_is_not_text_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"ab\xff")
    with pytest.raises(OSError, match="not UTF-8 text: invalid start byte at byte 2") as error:
        read_text(tmp_path / "x")
    assert error.value.filename == str(tmp_path / "x")


@LINUX
def test_no_descriptor_is_left_open(tmp_path):
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(OSError, match="folder"), open(tmp_path, "rb", opener=plain):
        pass
    assert len(before) == len(sorted(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("change", ["write", "replace", "remove", "touch"])
def test_a_change_is_noticed(change, tmp_path):
    file = tmp_path / "x"
    file.write_text("1")
    before = identities([file, tmp_path / "absent"])
    require_unchanged(before)
    if change == "write":
        file.write_text("12")
    elif change == "replace":
        (tmp_path / "y").write_text("1")
        os.utime(tmp_path / "y", ns=(0, file.stat().st_mtime_ns))
        (tmp_path / "y").replace(file)
    elif change == "remove":
        file.unlink()
    else:
        os.utime(file, ns=(0, 0))
    with pytest.raises(CheckpointError, match="changed while it was being read"):
        require_unchanged(before)


def test_a_file_that_appears_is_a_change(tmp_path):
    before = identities([tmp_path / "x"])
    (tmp_path / "x").write_text("")
    with pytest.raises(CheckpointError, match="changed"):
        require_unchanged(before)


@LINUX
def test_everything_in_a_folder_is_flushed_before_the_folder(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("x", "a/x", "a/b/x"):
        (tmp_path / name).write_text("")
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(Path(f"/proc/self/fd/{handle}").readlink()))
    flush_tree(tmp_path)
    assert set(flushed) == {tmp_path, *tmp_path.rglob("*")}
    assert all(flushed.index(path) < flushed.index(path.parent) for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(("number", "is_raised"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_only_a_folder_that_cannot_be_flushed_at_all_is_skipped(number, is_raised, tmp_path, monkeypatch):
    (tmp_path / "x").write_text("")

    def fail(_handle):
        raise OSError(number, "failed as requested")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="requested"):
        flush(tmp_path / "x")
    if is_raised:
        with pytest.raises(OSError, match="requested"):
            flush(tmp_path)
    else:
        flush(tmp_path)
