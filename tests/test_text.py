"""Numbers, names and values as people write them."""

from mupscale_cli.text import suggest


def test_suggestions_name_the_nearest():
    assert suggest("fnn", ["ffn", "embed"]) == "did you mean `ffn`? known: embed, ffn"
    assert suggest("xyz", []) is None
