"""Keep a run's folder: settings, log, weights, results, and who made them when.

May import `models`, `settings`, `files`.
"""
