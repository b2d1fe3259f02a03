"""What the documentation says of the recipes is so."""

import re
from pathlib import Path

import transformers

from helpers import MODELS
from mupscale_cli.recipe import model_types

ROOT = Path(__file__).parent.parent
TABLE = (ROOT / "recipes" / "README.md").read_text()


def rows():
    for line in TABLE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] != "model type":
            yield cells


def test_the_table_has_every_model_and_every_error_is_tiny():
    named = {(getattr(transformers, config).model_type, head) for head, config, _ in MODELS.values()}
    assert {(cells[0], cells[1]) for cells in rows()} == named
    for cells in rows():
        errors = [float(cell) for cell in cells[5:] if cell]
        assert len(errors) >= 3
        assert all(0 < error < 1e-10 for error in errors), cells


def test_the_readme_names_every_model_type():
    text = (ROOT / "README.md").read_text().partition("## Recipes\n")[2].partition("### Tied embeddings")[0]
    halves = {"clip_text_model", "clip_vision_model", "siglip_text_model", "siglip_vision_model"}  # "and their halves"
    missing = {name for name in model_types() if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)}
    assert missing == halves
