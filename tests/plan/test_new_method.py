"""Adding a method takes one class and one entry of a table; planning, recording and verifying follow."""

from dataclasses import dataclass

from cli_runner import run
from mupscale_cli.plan.copies import CopyMap
from mupscale_cli.plan.methods import METHODS, Method
from mupscale_cli.tasks.verify import verify
from mupscale_cli.tasks.widen import widen


@dataclass(frozen=True)
class Mirrored(Method):
    """Repeats units end to end, every second time in reverse order."""

    name = "mirrored"

    def copy_map(self, axis, size):
        turns = (range(size) if turn % 2 == 0 else reversed(range(size)) for turn in range(axis.factor))
        return CopyMap(size, axis.factor, sources=tuple(unit for turn in turns for unit in turn))


def test_a_new_method_widens_and_verifies(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, Mirrored.name, Mirrored)
    widened = widen(saved("Llama-untied"), tmp_path / "wide", 2, method="mirrored", dtype="float64")
    embed = next(axis for axis in widened.plan.axes if axis.name == "embed")
    assert embed.copy_map(3).all_sources == (0, 1, 2, 2, 1, 0)
    assert widened.verification.max_rel < 1e-12
    assert widened.record["method"] == {"name": "mirrored"}
    found = verify(tmp_path / "wide", dtype="float64", steps=2)
    assert found.agrees
    assert found.training.agrees
    assert "method mirrored" in run("widen", str(tmp_path / "wide"), "--factor=2", "--method=mirrored", "--dry-run").out
