"""Find learning rate and noise on small widened models, for the large one. The entry point is `run.sweep`."""
