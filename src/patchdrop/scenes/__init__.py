"""Large tiled scenes and slides: are they fit, what would reading cost, and the work itself.

May import `serve`, `tariffs` and what lies below them; knows nothing of `commands`.
"""
