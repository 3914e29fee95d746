"""Measure what networks cost: parameters and FLOPs are counted, milliseconds and memory measured.

May import `models` and what lies below it.
"""
