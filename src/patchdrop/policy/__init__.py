"""Decide and choose: from the LR image to patch logits, and from those to the patches to read; what a choice earns.

May import `networks`, `packed`, `grid`.
"""
