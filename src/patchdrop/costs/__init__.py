"""What networks cost: parameters and FLOPs counted, milliseconds and memory measured.

May import `models` and what lies below it.
"""
