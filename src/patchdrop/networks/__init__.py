"""Build backbones by name, and work on any of them: feature maps, folded batch norms, residual blocks.

May import `settings`, `errors`.
"""
