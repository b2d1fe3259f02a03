"""The experiments run from end to end, and training without noise is identical."""

import pytest

from experiments import run
from experiments.identity import measure_identity
from experiments.results import load
from experiments.tasks import TASKS
from experiments.transfer import Grid, search


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("name", TASKS)
def test_without_noise_training_is_identical(name, factor, tmp_path):
    found = measure_identity(TASKS[name], tmp_path, factor, steps=10)
    assert len(found.wide) == 10
    assert found.difference < 1e-12
    # The model learns. One batch is a noisy measure, since the GPT's batches come from different documents.
    assert min(found.narrow[5:]) < found.narrow[0]
    # A single learning rate for all tensors trains differently.
    assert max(abs(s / n - 1) for s, n in zip(found.standard, found.narrow, strict=False)) > 1e-4


@pytest.mark.parametrize("best", [-7, 0, 3])
def test_search_continues_past_its_optimum(best):
    grid = search(lambda e: (((e - best) ** 2 + 1.0, (e - best + 0.4) ** 2 + 1.0), (0.0, 0.0)), start=0)
    assert grid.best == best
    assert grid.best_of_seeds == (best, best)
    assert best - 2 >= min(grid.seen)
    assert best + 2 <= max(grid.seen)
    assert grid.fitted == pytest.approx(best - 0.2)


def test_diverged_runs_are_not_an_optimum():
    grid = Grid({-1: (1.0, 2.0), 0: (0.5, float("inf")), 1: (3.0, 3.0)}, {})
    assert grid.best == -1


LONG = [pytest.param(group, marks=pytest.mark.slow) for group in ("resnet", "gpt")]


@pytest.mark.parametrize("group", ["mlp-sgd", *LONG])
def test_every_experiment_runs(group, tmp_path):
    (tmp_path / "README.md").write_text("before\n<!-- optima -->\n<!-- end -->\nafter\n")
    run.main([group, "--quick", "--output", str(tmp_path)])
    files = list((tmp_path / "results").glob("*.json"))
    assert [load(file).title for file in files]
    assert len(list((tmp_path / "figures").glob("optima-*.svg"))) == len(
        list((tmp_path / "results").glob("optima-*.json"))
    )
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n<!-- optima -->\n|")
    assert text.endswith("<!-- end -->\nafter\n")
