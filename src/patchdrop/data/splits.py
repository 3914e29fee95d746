"""Carve a validation split out of a labelled set."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from statistics import mode

from patchdrop.errors import UsageError


def carve(
    targets: Sequence[int], fraction: float, seed: int, groups: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Take ``fraction`` of each class out of a set, at random.

    Of a class with n images ``round(fraction * n)`` are taken: at least one, and all but one at most, if there are two
    or more; none if there is only one. The draw uses Python's own generator, whose numbers are the same on every
    machine and version.

    Args:
        targets: class index of each image.
        fraction: from 0 (takes nothing) to below 1.
        seed: same seed, same split.
        groups: number of each image's group; images of a group stay together, and are drawn as one image of their most
            frequent class. None: each image by itself.

    Returns:
        Positions that stay and positions carved out, both sorted.

    Raises:
        UsageError: ``fraction`` is out of range.
    """
    if not 0 <= fraction < 1:
        raise UsageError(f"fraction {fraction}: a split takes from 0 to below 1 of the images")
    generator = random.Random(seed)
    together: dict[int, list[int]] = {}
    for position, group in enumerate(range(len(targets)) if groups is None else groups):
        together.setdefault(group, []).append(position)
    members: dict[int, list[list[int]]] = {}
    for positions in together.values():
        members.setdefault(mode(targets[i] for i in positions), []).append(positions)
    carved: set[int] = set()
    if fraction > 0:
        for target in sorted(members):
            drawn = generator.sample(members[target], _count(len(members[target]), fraction))
            carved.update(itertools.chain(*drawn))
    return [i for i in range(len(targets)) if i not in carved], sorted(carved)


def _count(images: int, fraction: float) -> int:
    """Return how many of a class's images are carved out."""
    return min(max(round(fraction * images), 1), images - 1)
