"""Define, create, read and check mupscale.json and the documents of `--json`."""

FORMAT_VERSION = 1  # of mupscale.json
