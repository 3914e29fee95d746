"""Backbones by name, and what is done to any of them: feature maps, folded batch norms, residual blocks.

May import `settings`, `errors`.
"""
