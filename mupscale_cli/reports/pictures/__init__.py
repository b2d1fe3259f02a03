"""Draw pictures and write reports with matplotlib."""
