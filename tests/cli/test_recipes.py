"""`mupscale recipes`."""

from cli_runner import run


def test_show_prints_conditions_and_reasons():
    shown = run("recipes", "show", "llama").out
    assert "tied_readout" in shown
    assert "--axis layers:N adds blocks" in shown


def test_check_against_a_checkpoint(saved):
    assert "each matches one rule and has its shape" in run("recipes", "check", "llama", str(saved("Llama-tied"))).out
    assert run("recipes", "check", "qwen3", str(saved("Llama-tied"))).code == 2
