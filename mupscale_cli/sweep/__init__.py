"""Finding learning rate and noise on small widened models, for the large one. `run.sweep` is the door."""
