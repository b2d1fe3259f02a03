"""The commands: thin, over the functions that the Python API has."""
