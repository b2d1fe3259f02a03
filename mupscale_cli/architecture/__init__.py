"""What an architecture is: the recipe language, its parser, composites and matching names."""
