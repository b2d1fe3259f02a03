"""Architectures: the recipe language, its parser, composite recipes and the matching of tensor names."""
