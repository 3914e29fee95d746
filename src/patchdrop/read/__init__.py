"""The seam between choosing and reading patches.

A reader is a function ``choice (B, P) bool -> Packed``. Training passes one that gathers from a tensor it
holds, serving one that opens files; nothing else differs between the two.
"""
