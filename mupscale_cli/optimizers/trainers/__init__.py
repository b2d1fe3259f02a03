"""Continuing in a trainer: its optimizer, its clipping, its settings as text. Trainers are imported when needed."""
