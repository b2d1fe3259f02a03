"""File formats of optimizer state."""
