"""mupscale.json and every `--json` document."""
