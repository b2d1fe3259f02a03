"""The API under its two names."""

import subprocess
import sys

import pytest

import mupscale
import mupscale_cli


def test_both_names_give_the_same_module():
    assert mupscale is mupscale_cli
    assert set(mupscale.__all__) <= set(dir(mupscale))
    with pytest.raises(AttributeError, match="module `mupscale` has no attribute `nothing`"):
        _ = mupscale.nothing


def test_importing_it_imports_nothing_heavy():
    program = "import sys, mupscale; print([name for name in ('torch', 'numpy', 'yaml') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
