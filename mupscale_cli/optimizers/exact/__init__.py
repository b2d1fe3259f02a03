"""Exact implementations of optimizers that torch lacks or computes approximately, for verifying training."""
