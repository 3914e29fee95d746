"""Carve a validation split out of a labelled set."""

from __future__ import annotations

import random
from collections.abc import Sequence

from patchdrop.errors import UsageError


def carve(targets: Sequence[int], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Take ``fraction`` of each class out of a set, at random.

    Of a class with n images ``round(fraction * n)`` are taken: at least one, and all but one at most, where
    there are two or more; none where there is only one. The draw rests on Python's own generator, whose
    numbers are the same on every machine and version.

    Args:
        targets: class index of each image.
        fraction: from 0 (takes nothing) to below 1.
        seed: same seed, same split.

    Returns:
        Positions that stay and positions carved out, both sorted.

    Raises:
        UsageError: ``fraction`` is out of range.
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"fraction {fraction}: a split takes from 0 to below 1 of the images")
    generator = random.Random(seed)
    members: dict[int, list[int]] = {}
    for position, target in enumerate(targets):
        members.setdefault(target, []).append(position)
    carved: set[int] = set()
    if fraction > 0:
        for target in sorted(members):
            carved.update(generator.sample(members[target], _count(len(members[target]), fraction)))
    return [i for i in range(len(targets)) if i not in carved], sorted(carved)


def _count(images: int, fraction: float) -> int:
    """How many of a class's images are carved out."""
    return min(max(round(fraction * images), 1), images - 1)
