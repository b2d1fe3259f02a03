"""Explain, outline and picture plans and verifications for people."""
