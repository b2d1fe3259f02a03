"""Test the grid of a sweep."""

from mupscale_cli.sweep.grid import learning_rates, make_grid


def test_single_learning_rate_expands_to_powers_of_sqrt_2():
    assert learning_rates("1e-3", 5) == (0.0005, 0.0007071, 0.001, 0.001414, 0.002)
    assert learning_rates("1e-3", 1) == (0.001,)
    assert learning_rates("3e-4,1e-3", 5) == (3e-4, 1e-3)


def test_grid_has_every_point_once_grouped_by_checkpoint():
    grid = make_grid([4, 2, 2], [1e-3, 1e-4], [0.1, 0.0], 2)
    points = list(grid)
    assert len(points) == len(set(points)) == len(grid) == 16
    checkpoints = [(point.seed, point.factor, point.noise) for point in points]
    assert checkpoints == sorted(checkpoints)
