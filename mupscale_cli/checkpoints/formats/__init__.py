"""The formats of weights: each is one file here and one entry of `reading.FORMATS`."""
