"""Find out whether two sets of image files share an image, under whatever names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def shared_image(ours: Iterable[Path], theirs: Iterable[Path]) -> tuple[Path, Path] | None:
    """Return the first of our files whose bytes are also one of theirs, with theirs; None if there is none.

    Only files of equal size are read. An image that was saved again, with other bytes, is not recognised.
    """
    by_size: dict[int, list[Path]] = {}
    for path in theirs:
        by_size.setdefault(path.stat().st_size, []).append(path)
    known: dict[int, dict[str, Path]] = {}
    for path in ours:
        size = path.stat().st_size
        if size not in by_size:
            continue
        if size not in known:
            known[size] = {_sha256(other): other for other in by_size[size]}
        same = known[size].get(_sha256(path))
        if same is not None:
            return path, same
    return None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
