"""Read chosen patches: a reader, the seam to choosing, is a function ``choice (B, P) bool -> Packed``.

Training passes one that gathers from a tensor, serving one that opens files; nothing else differs between the two.
May import `tiff`, `transport`, `packed`, `grid`.
"""
