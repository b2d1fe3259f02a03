"""The state of optimizers: found beside a checkpoint, widened with it, written back in kind."""
