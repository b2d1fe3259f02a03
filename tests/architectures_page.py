"""Write the manual's page of architectures again, from the recipes: `python tests/architectures_page.py`."""

from pathlib import Path

import mupscale_cli.cli.pages
from mupscale_cli.reports.architectures import architectures_page

PAGE = Path(mupscale_cli.cli.pages.__file__).with_name("architectures.md")

if __name__ == "__main__":
    PAGE.write_text(architectures_page(), encoding="utf-8")
