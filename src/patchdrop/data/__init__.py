"""Labelled images: where they come from, how they are split, how batches are made.

May import `read` and what lies below it.
"""
