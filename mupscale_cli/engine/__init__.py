"""Executing a plan: reading, expanding, splitting and adding noise block by block, and sharing the work."""
