"""A sample of the faults that `tests/faults.py` tries in full."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faults import make_source

RUN = Path(__file__).parents[1] / "faults.py"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="the library to preload needs Linux and a C compiler"
)


def failures(*arguments):
    """Return what is not as promised, and the last line."""
    found = subprocess.run([sys.executable, RUN, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode in (0, 1), found.stderr
    lines = found.stdout.splitlines()
    return [line for line in lines if ": " in line and " calls" not in line], lines[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):

    folder = tmp_path_factory.mktemp("source") / "narrow"
    make_source(folder)
    return folder


@pytest.mark.parametrize(
    "arguments", [("--sample", "1", "--runs", "20"), pytest.param((), marks=pytest.mark.slow)], ids=["a-few", "all"]
)
def test_a_fault_at_any_call_leaves_the_old_output_or_the_new_one(arguments, source):
    wrong, summary = failures(*arguments, "--source", source)
    assert wrong == []
    assert summary.endswith(" 0 not as promised")
