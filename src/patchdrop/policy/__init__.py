"""Turn an LR image into patch logits, and those into the patches to read; compute the reward of a choice.

May import `networks`, `packed`, `grid`.
"""
