"""Proving that two models compute the same function, and train alike."""
