"""Test the evaluation of a grid: optima, recommendation, warnings."""

import numpy as np
import pytest

from mupscale_cli.sweep.grid import Grid
from mupscale_cli.sweep.result import Trial, evaluate_trials

GRID = Grid((2, 4), (1e-4, 2e-4, 4e-4, 8e-4), (0.0, 0.05, 0.1), (0,))


def evaluate(loss, grid=GRID):
    return evaluate_trials(grid, [Trial(point, loss(point)) for point in grid])


def test_optima_and_recommendation():
    best = {2: 2e-4, 4: 4e-4}
    findings = evaluate(lambda p: np.log2(p.lr / best[p.factor]) ** 2 * (3 if p.factor == 4 else 1) + (p.noise != 0.1))
    assert [(cell.factor, cell.lr, cell.noise) for cell in findings.optima] == [(2, 2e-4, 0.1), (4, 4e-4, 0.1)]
    assert findings.recommendation.lr == 4e-4
    assert findings.recommendation.lr_shift == 1
    assert findings.recommendation.noise_shift == 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p: -p.lr, "0.0008, is the largest of the grid"),
        (lambda p: p.lr, "0.0001, is the smallest of the grid"),
        (lambda p: p.noise, "copies then stay equal until something tells them apart"),
        (lambda p: -p.noise, "best noise, 0.1, is the largest"),
        (lambda p: abs(p.lr - (1e-4 if p.factor == 2 else 4e-4)), "learning rates differ by 2 grid steps"),
        (lambda p: None if p.factor == 4 else p.lr, "every trial of x4 diverged"),
        (
            lambda p: None if (p.lr > 1e-4) == (p.factor == 2) else p.lr,
            "no point of the grid has a loss at every width",
        ),
    ],
)
def test_recommendation_warns(loss, message):
    assert message in "\n".join(evaluate(loss).recommendation.warnings)


def test_optimum_inside_the_grid_has_no_warning():
    assert evaluate(lambda p: np.log2(p.lr / 2e-4) ** 2 + abs(p.noise - 0.05)).recommendation.warnings == ()


def test_point_that_diverged_at_one_seed_is_not_recommended():
    grid = Grid((2,), (1e-4, 2e-4, 4e-4), (0.0,), (0, 1))
    findings = evaluate(lambda p: None if (p.lr, p.seed) == (4e-4, 1) else 1 - p.lr, grid)
    assert findings.recommendation.lr == 2e-4
    assert (findings.cell(2, 0.0, 4e-4).loss, findings.cell(2, 0.0, 4e-4).num_diverged) == (None, 1)


def test_optimum_that_changes_with_the_seed_is_a_warning():
    grid = Grid((2,), (1e-4, 2e-4, 4e-4), (0.0,), (0, 1))
    losses = {1e-4: (9, 9), 2e-4: (1, 3), 4e-4: (2.5, 2)}
    assert "changes with the seed" in evaluate(lambda p: losses[p.lr][p.seed], grid).recommendation.warnings[-1]


def test_no_recommendation_if_every_trial_diverged():
    findings = evaluate(lambda _: None)
    assert findings.recommendation is None
    assert findings.optima == ()
