"""Drafting a recipe for an architecture that has none, by building it tiny and trying."""
