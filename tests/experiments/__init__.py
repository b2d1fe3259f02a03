"""Experiments that measure the method's claims, small enough for two CPU cores."""
