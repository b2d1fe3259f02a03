"""Optimizers: their rules, their state, and the hyperparameters of a widened model."""
