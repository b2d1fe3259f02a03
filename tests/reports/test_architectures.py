"""The manual's page of architectures, which is made from the recipes."""

from architectures_page import PAGE

from mupscale_cli.reports.architectures import architectures_page


def test_the_page_is_up_to_date():
    text = PAGE.read_text(encoding="utf-8")
    assert text == architectures_page(), "run `python tests/architectures_page.py`"


def test_the_page_says_what_an_axis_is_called_in_the_config():
    (row,) = [line for line in architectures_page().splitlines() if line.startswith("| llama |")]
    assert "mistral" in row
    assert "`ffn` intermediate_size" in row
    assert row.index("`embed` hidden_size") < row.index("`g` num_attention_heads // kv")  # widened by name only
