"""Layouts: where a trainer's checkpoint keeps weights, optimizer state and sizes. Each is one module here."""
