"""Every file of an output, and every folder, reaches the disk before the output gets its name."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from mupscale_cli.errors import OutputError
from mupscale_cli.tasks.widen import widen
from training import save_state

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells the name of an open file")
KINDS = ["torch", "safetensors", "distributed"]


def name_of(handle, root):
    """Return the name of an open file below a folder, without the random part of the staged folder's name."""
    name = Path(f"/proc/self/fd/{handle}").readlink().relative_to(root).as_posix()
    return re.sub(r"\.(wide[^/]*)\.partial-\w+(/output)?", r"\1", name)


@pytest.fixture(params=[(kind, is_file) for kind in KINDS for is_file in (False, True)], ids=str)
def source(request, tmp_path):
    """A checkpoint of every form, with all files that may lie beside it."""
    kind, is_file = request.param
    folder = save_state(tmp_path / "narrow", kind)
    (folder / "tokenizer.json").write_text("{}")
    if not is_file:
        return folder
    for path in folder.glob("optimizer*"):
        path.rename(folder / f"model.{path.name}")
    return folder / "model.safetensors"


def widened(source, folder):
    target = folder / f"wide{source.suffix}"
    return widen(source, target, 2, verify=False)


def published(folder):
    """Return the names of everything that a run published, and of the folder that it published to."""
    paths = [folder, *folder.rglob("*")]
    return {path.relative_to(folder.parent).as_posix() for path in paths}


def test_everything_published_has_been_flushed(source, tmp_path, monkeypatch):
    flushed = set()
    out = tmp_path / "out"
    out.mkdir()
    fsync = os.fsync

    def note(handle):
        flushed.add(name_of(handle, tmp_path))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    widened(source, out)
    stem = "out/wide."  # a companion of a single file is flushed under its name in the staged folder
    missing = {name for name in published(out) if not {name, name.replace(stem, "out/wide.safetensors/", 1)} & flushed}
    assert missing - {"out/wide.safetensors"} == set()
    assert any("wide" in name for name in flushed)


def test_a_failing_flush_of_any_file_or_folder_fails_the_run(source, tmp_path, monkeypatch):
    names = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: names.append(name_of(handle, tmp_path)))
    (tmp_path / "try").mkdir()
    widened(source, tmp_path / "try")
    shutil.rmtree(tmp_path / "try")
    inside = sorted({name for name in names if "wide" in name and ".mupscale" not in name})
    one_of_each = {re.sub(r"\d+", "", name): name for name in inside}  # a distributed state has hundreds of files
    assert len(one_of_each) > 3
    for failing in one_of_each.values():

        def fail(handle, failing=failing):
            if name_of(handle, tmp_path) == failing:
                raise OSError(errno.EIO, "failed as requested")
            fsync(handle)

        monkeypatch.setattr(os, "fsync", fail)
        (tmp_path / "try").mkdir()
        with pytest.raises(OutputError, match="failed as requested"):
            widened(source, tmp_path / "try")
        left = {path.name for path in (tmp_path / "try").iterdir()}
        assert all(name.startswith(".") for name in left), failing  # finished files may stay for `--resume`
        shutil.rmtree(tmp_path / "try")
