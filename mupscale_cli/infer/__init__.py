"""Draft a recipe for an architecture that has none: build the architecture tiny and experiment with it."""
