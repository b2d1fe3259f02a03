"""A small model that is trained on the spot, so that everything can be seen on real input."""
