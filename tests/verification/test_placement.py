"""Choosing the data type and the device of both models."""

import pytest

from mupscale_cli.errors import VerifyError
from mupscale_cli.tasks.planning import plan_widening
from mupscale_cli.tasks.widen import widen
from mupscale_cli.verification import placement


def test_auto_chooses_the_most_precise_type_that_fits(monkeypatch, mlp, tmp_path):
    source, model = mlp
    plan = plan_widening(source, factor=2)
    # 16 x 5 + 16 + 12 x 16 + 12 + 3 x 12 + 3 = 339 numbers.
    for free, expected in ((339 * 8 * 2, "float64"), (339 * 4 * 2 - 1, "float32")):
        monkeypatch.setattr(placement, "free_bytes", lambda _, free=free: free)
        found = widen(source, tmp_path / f"{expected}.safetensors", 2, plan=plan, model=model)
        assert found.verification.dtype == expected
    monkeypatch.setattr(placement, "free_bytes", lambda _: 339 * 4 - 1)
    found = widen(source, tmp_path / "none.safetensors", 2, plan=plan, model=model)
    assert found.verification is None
    assert "free" in found.skipped


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "float12"}, "float12"),
        ({"device": "abacus"}, "abacus"),
        ({"dtype": "int32"}, "int32"),
    ],
)
def test_impossible_options_are_refused(options, says, saved, tmp_path):
    with pytest.raises(VerifyError, match=says):
        widen(saved("Llama-tied"), tmp_path / "wide", 2, **options)
    assert not list(tmp_path.iterdir())
