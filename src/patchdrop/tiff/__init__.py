"""Read TIFF: directories, tiles and levels from ranges of bytes, and tiles decoded to pixels.

May import `transport`, `errors`.
"""
