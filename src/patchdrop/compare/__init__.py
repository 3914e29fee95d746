"""Make every row of the paper's tables with one command: train, evaluate, time and lay out side by side.

May import `training` and what lies below it.
"""
