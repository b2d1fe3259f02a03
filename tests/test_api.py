"""The API under its two names."""

import subprocess
import sys

import pytest

import mupscale
import mupscale_cli


def test_both_names_give_the_same_objects():
    assert mupscale.__all__ == mupscale_cli.__all__
    for name in mupscale_cli.__all__:
        assert getattr(mupscale, name) is getattr(mupscale_cli, name)
    assert dir(mupscale) == mupscale.__all__
    with pytest.raises(AttributeError, match="module `mupscale` has no attribute `nothing`"):
        _ = mupscale.nothing


def test_importing_it_imports_nothing_heavy():
    program = "import sys, mupscale; print([name for name in ('torch', 'numpy', 'yaml') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
