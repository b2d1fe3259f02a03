"""Growing a model, its optimizer and its schedule in memory, once or in the course of a run."""
