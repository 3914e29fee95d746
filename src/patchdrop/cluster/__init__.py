"""Spread pieces of work over worker processes, here or on a Dask cluster.

Takes a function and its arguments, and hands each one's result back. May import `settings`,
`terminal`, `version`.
"""
