"""Classify images: map packed patches, and LR, to class logits.

May import `policy` (both enlarge LR alike), `data` (for PCN), `networks`, `packed`, `grid`.
"""
