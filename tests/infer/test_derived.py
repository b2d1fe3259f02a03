"""Sizes that an architecture computes from other keys."""

import pytest

from mupscale_cli.infer.derived import derived_size


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (lambda c: c.get("inner", 4 * c["width"]), "4 * width"),
        (lambda c: c.get("inner", c["width"] // c["heads"]), "width // heads"),
        (lambda c: c.get("inner", 9), None),
        (lambda c: c["inner"], None),
    ],
)
def test_derived_size_of_an_absent_key(measure, expected):
    assert derived_size(measure, {"inner": 5, "width": 48, "heads": 4}, "inner", ["width", "heads"]) == expected
