"""The small language model of `mupscale demo`, trained on the spot."""
