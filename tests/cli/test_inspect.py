"""`mupscale inspect`."""

from cli_runner import run


def test_inspect_shows_how_a_checkpoint_was_made(widened):
    shown = run("inspect", str(widened)).out
    assert "widened by mupscale" in shown
    assert "embed x2" in shown
