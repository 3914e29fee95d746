"""Resample boxes of a scene to another size; each pixel is the mean over the area that it covers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from patchdrop.tiff.directory import Level
from patchdrop.tiff.tiles import Box, Tiles
from patchdrop.transport.ledger import Purpose
from patchdrop.transport.ranges import Transport

TINY = 1e-6
"""Multiplication may make a whole number of pixels this much larger or smaller; it still counts as that number."""

Exact = tuple[float, float, float, float]
"""Top, left, bottom, right in parts of pixels."""


def resampled(
    tiles: Tiles,
    full: Level,
    where: Sequence[tuple[Exact, tuple[int, int]]],
    transport: Transport,
    purpose: Purpose,
) -> tuple[list[NDArray[np.uint8]], list[bool]]:
    """Average boxes of a scene over area, from the tiles of one of its levels.

    Args:
        full: the scene's full resolution, in whose pixels the boxes are.
        where: boxes, and the height and width that each is resampled to.

    Returns:
        ``(C, height, width)`` of each box, and whether any pixel of it is neither nodata nor transparent.
    """
    placed = [in_level(tiles.level, full, box) for box, _ in where]
    outer = [around for _, around in placed]
    tiles.fetch(outer, transport, purpose)
    windows = tiles.windows(outer, transport.name)
    found = [
        area_resampled(window.values, exact, around, size)
        for window, (exact, around), (_, size) in zip(windows, placed, where, strict=True)
    ]
    return found, [w.seen is None or bool(w.seen.any()) for w in windows]


def in_level(level: Level, full: Level, box: Exact) -> tuple[Exact, Box]:
    """Convert a box of the scene to pixels of a level: the exact box, and the whole pixels that it touches."""
    down, across = level.height / full.height, level.width / full.width
    top, left, bottom, right = box[0] * down, box[1] * across, box[2] * down, box[3] * across
    return (top, left, bottom, right), (
        int(top + TINY),
        int(left + TINY),
        _up(bottom, level.height),
        _up(right, level.width),
    )


def area_resampled(values: NDArray[np.uint8], box: Exact, around: Box, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Average a box of pixels over area: each pixel of the result is the mean of what it covers.

    Args:
        values: ``(C, height, width)``, the whole pixels in ``around``.
        box: top, left, bottom, right, in the same coordinates as ``around`` and within it.
        size: height and width of the result.

    Returns:
        ``(C, *size)``; the pixels themselves if nothing has to be averaged.
    """
    if tuple(float(edge) for edge in around) == box and values.shape[1:] == size:
        return values
    down = _weights(box[0] - around[0], box[2] - around[0], values.shape[1], size[0])
    across = _weights(box[1] - around[1], box[3] - around[1], values.shape[2], size[1])
    averaged: NDArray[np.uint8] = np.rint(down @ values.astype(np.float32) @ across.T).astype(np.uint8)
    return averaged


def _weights(start: float, stop: float, length: int, parts: int) -> NDArray[np.float32]:
    """Return each pixel's share in each of ``parts`` equal pieces of ``start`` to ``stop``: ``(parts, length)``."""
    edges = np.linspace(start, stop, parts + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = overlap.clip(0)
    weights: NDArray[np.float32] = (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
    return weights


def _up(edge: float, most: int) -> int:
    return min(most, int(np.ceil(edge - TINY)))
