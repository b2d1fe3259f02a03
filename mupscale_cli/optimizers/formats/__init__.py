"""The file formats of optimizer state."""
