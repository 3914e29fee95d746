"""Derive seeds from one another, so that no random state outlives a step."""

from __future__ import annotations

import hashlib


def derived_seed(*parts: object) -> int:
    """Return a 63-bit seed from anything printable; independent for every different input."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
