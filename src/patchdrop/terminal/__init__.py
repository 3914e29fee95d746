"""Show a person progress and warnings while a command runs, and tables when it ends.

Takes documents and numbers. May import `errors`.
"""
