"""The method's own claims, measured at a size that two cores can do in minutes."""
