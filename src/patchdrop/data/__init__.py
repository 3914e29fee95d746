"""Load labelled images: find them, split them, and make batches.

May import `read` and what lies below it.
"""
