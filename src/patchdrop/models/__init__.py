"""The networks of each stage of training, built from a description that is kept beside their weights.

May import `episode`, `classify`, and what lies below them.
"""
