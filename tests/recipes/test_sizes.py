"""The table of sizes in recipes/README.md says what is exact, what is impossible and why."""

import pytest
from size_table import BEGIN, END, README, families, kinds, read_table, size_cells

from small_models import established

# The table takes long to make, so it may lack these.
RECENT = {case for case in families() if case not in established.MODELS}
TABLE = read_table(README.read_text().partition(BEGIN)[2].partition(END)[0])
SAMPLE = ("Phi-untied",)  # LayerNorm with linked sizes


def test_the_table_has_every_family_and_no_failure():
    assert [case for case in families() if case in TABLE] == list(TABLE)
    assert set(TABLE) | RECENT == set(families())
    cells = [cell for row in TABLE.values() for cell in kinds(row)[1:]]
    assert not [cell for cell in cells if cell.startswith("**")]
    assert cells.count("exact") > len(cells) / 2


@pytest.mark.parametrize(
    "case", [case if case in SAMPLE else pytest.param(case, marks=pytest.mark.slow) for case in TABLE]
)
def test_a_family_grows_as_the_table_says(case):
    assert kinds(size_cells(case)) == kinds(TABLE[case])
