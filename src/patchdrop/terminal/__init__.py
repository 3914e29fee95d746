"""What a person sees while a command runs and when it ends: progress, warnings, tables.

Takes documents and numbers. May import `errors`.
"""
