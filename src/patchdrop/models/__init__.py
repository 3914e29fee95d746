"""Build the networks of each training stage from a description that is saved beside their weights.

May import `episode`, `classify`, and what lies below them.
"""
