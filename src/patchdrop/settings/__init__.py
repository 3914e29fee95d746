"""What a user may ask for, as flags and YAML have it: flat names, profiles, what is filled in from the data.

Free of torch, so that ``--help`` answers at once. May import `grid` and `errors`.
"""
