"""Available memory: limits of the machine, a container and `ulimit`."""

import subprocess
import sys

import pytest

from mupscale_cli.engine import memory


def test_free_memory_is_the_smallest_limit(monkeypatch):
    monkeypatch.setattr(memory, "_machine_bytes", lambda: iter((7,)))
    monkeypatch.setattr(memory, "_container_bytes", lambda: iter((5, 9)))
    monkeypatch.setattr(memory, "_ulimit_bytes", lambda: iter(()))
    assert memory.free_memory() == 5
    monkeypatch.setattr(memory, "_machine_bytes", lambda: iter(()))
    monkeypatch.setattr(memory, "_container_bytes", lambda: iter(()))
    assert memory.free_memory() is None


@pytest.mark.skipif(sys.platform != "linux", reason="limits on data are those of Linux")
def test_a_ulimit_counts():
    code = "from mupscale_cli.engine.memory import free_memory; print(free_memory())"
    command = f"ulimit -d 500000; exec {sys.executable} -c '{code}'"
    found = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert 0 < int(found.stdout) < 500_000 * 1024


@pytest.mark.parametrize(
    ("limit", "usage", "files", "left"),
    [("1000", "700", 300, [600]), ("1000", "1200", 100, [0]), ("max", "700", 300, []), ("nonsense", "700", 300, [])],
)
def test_cached_pages_of_a_container_count_as_available(limit, usage, files, left, tmp_path):
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(usage + "\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {files // 3}\nactive_file {files - files // 3}\n")
    assert list(memory._ControlGroupFiles(tmp_path, "memory.max", "memory.current").available(tmp_path)) == left
    assert (
        list(memory._ControlGroupFiles(tmp_path, "memory.max", "memory.current").available(tmp_path / "absent")) == []
    )
