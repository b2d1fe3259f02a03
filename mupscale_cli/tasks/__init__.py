"""The commands as functions, which form the Python API."""
