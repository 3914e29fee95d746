"""Decide and choose: from the LR image to the patches to read."""
