"""mupscale.json and the documents of `--json`: their types, made, read and checked."""

FORMAT_VERSION = 1  # of mupscale.json
