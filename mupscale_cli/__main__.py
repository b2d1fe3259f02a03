"""`python -m mupscale_cli`."""

from mupscale_cli.cli.main import main

main()
