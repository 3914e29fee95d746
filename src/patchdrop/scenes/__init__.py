"""Check large tiled scenes and slides, plan what reading them would cost, and classify their cells.

May import `serve`, `tariffs` and what lies below them; knows nothing of `commands`.
"""
