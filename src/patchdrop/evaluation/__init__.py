"""Measure a trained policy: accuracy and cost, baselines, operating points, verdicts.

May import `runs` and what lies below it.
"""
