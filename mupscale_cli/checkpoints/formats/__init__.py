"""Weight formats: each is one module here and one entry in `reading.FORMATS`."""
