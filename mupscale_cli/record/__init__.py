"""mupscale.json and the documents of `--json`: their types, made, read and checked."""

FORMAT_VERSION = 2  # of mupscale.json
