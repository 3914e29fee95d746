"""Read bytes of files here or far away: HTTP, object stores, caches, and the ledger of what was read.

Knows nothing of images. May import `files`, `version`, `errors`.
"""
