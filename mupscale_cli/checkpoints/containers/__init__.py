"""Containers: files and folders of nested values with tensors, as torch saves them."""
