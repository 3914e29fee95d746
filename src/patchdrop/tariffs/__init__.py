"""Terms that pixels are sold by, and what is ordered under them.

May import `read` and what lies below it.
"""
