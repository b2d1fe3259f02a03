"""The rules of optimizers, by family, and how a state tells which optimizer it belongs to."""
