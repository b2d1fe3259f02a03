"""The points of a sweep."""

from mupscale_cli.sweep.grid import Point, learning_rates, make_grid


def test_one_learning_rate_is_the_centre_of_powers_of_the_root_of_two():
    assert learning_rates("1e-3", 5) == (0.0005, 0.0007071, 0.001, 0.001414, 0.002)
    assert learning_rates("1e-3", 1) == (0.001,)
    assert learning_rates("3e-4,1e-3", 5) == (3e-4, 1e-3)


def test_a_grid_has_every_point_once_and_those_of_one_checkpoint_together():
    grid = make_grid([4, 2, 2], [1e-3, 1e-4], [0.1, 0.0], 2)
    points = list(grid)
    assert len(points) == len(set(points)) == len(grid) == 16
    checkpoints = [(point.seed, point.factor, point.noise) for point in points]
    assert checkpoints == sorted(checkpoints)


def test_points_are_ordered_by_checkpoint():
    assert Point(2, 0.0, 0, 1.0) < Point(2, 0.0, 1, 0.5) < Point(2, 0.1, 0, 0.1) < Point(4, 0.0, 0, 0.1)
