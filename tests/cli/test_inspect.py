"""What `inspect` tells of a checkpoint."""

from cli_runner import run


def test_inspect_tells_how_a_checkpoint_came_to_be(widened):
    shown = run("inspect", str(widened)).out
    assert "widened by mupscale" in shown
    assert "embed x2" in shown
