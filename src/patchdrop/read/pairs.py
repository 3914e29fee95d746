"""Read LR of a scene's cells from another scene of the same ground: a Sentinel-2 tile under an aerial image, say.

Each pixel of LR is the mean of the LR scene's pixels under it. If rows and columns of both scenes run alike the mean
is exact; if they are turned or bent against each other, because the coordinate systems differ, it is taken over
points, at least four a pixel each way. If the LR scene is coarser than LR its pixels are repeated.

Only the tiles that cover the cells are read, of the coarsest level that is at least as fine as LR. Places outside the
LR scene are nodata.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from patchdrop.errors import DataError
from patchdrop.grid import Shape
from patchdrop.read.tiled import GROUP_PIXELS, SAME_SCALE, Look, low_misfit
from patchdrop.tiff.directory import Header, Level
from patchdrop.tiff.resample import area_resampled
from patchdrop.tiff.tiles import Box, Tiles
from patchdrop.transport.ranges import Transport

Points = NDArray[np.float64]
Onto = Callable[[Points, Points], tuple[Points, Points]]
"""Maps columns and rows in pixels of one scene to those in another; not finite if there is no such place."""
EDGE_POINTS = 32
"""Number of parts that an edge of the scene is measured in."""
DIGITS = 6
"""Number of decimal digits of a pixel that count."""
POINTS = 4
"""Points on a side of a pixel that is averaged over points ..."""
LEAST_POINTS, MOST_POINTS = 8, 64
"""... but at least and at most this many on a side of a pixel of LR."""
AT_A_TIME = 2**20
"""Points that are held at once."""
SPREAD = 4.0
"""A cell this many times wider than usual lies across a seam of the LR scene's coordinates."""


class _Spot(NamedTuple):
    """The place of a cell in a level of the LR scene."""

    columns: Points
    """Columns ``(h + 1, w + 1)`` of the corners of LR's pixels."""
    rows: Points
    around: Box
    """The whole pixels that it touches, including those outside the level."""
    inside: Box
    """The whole pixels that it touches inside the level."""


class LowScene:
    """A scene that shows the ground of another scene's cells; a `LowSource`.

    Args:
        transport: where its bytes come from; its ledger counts them.
        header: its own.
        shape: sizes and bands of the model.
        gap: ranges at most this many bytes apart are read as one.
        above: name of the other scene, for errors.
        size: height and width of the other scene in pixels.
        cell: height and width of its cells in its pixels.
        onto: maps its pixels to those of this scene's full resolution.

    Raises:
        DataError: it cannot be read in parts, does not fit the model, or shows none of that ground.
    """

    def __init__(
        self,
        transport: Transport,
        header: Header,
        shape: Shape,
        gap: int,
        above: str,
        size: tuple[int, int],
        cell: tuple[int, int],
        onto: Onto,
    ) -> None:
        self.name = transport.name
        reason = low_misfit(header, shape)
        if reason:
            raise DataError(f"{self.name}: {reason}")
        self._transport, self._size, self._above, self._onto, self._low = transport, size, above, onto, shape.low
        self._full = header.levels[0]
        self.version = transport.version
        if not self._overlaps():
            raise DataError(f"{self.name}: shows none of the ground of {above}: give the LR scene that lies under it")
        self._cell = self._measured(cell)
        self.level = low_level_for(header, self._cell, shape.low)
        self._tiles = Tiles(self.level, header.start, gap)

    def look(self, where: Sequence[Box]) -> Look:
        """Return LR of boxes in the other scene's pixels; one that lies outside this scene is all nodata."""
        low = torch.zeros(len(where), self.level.colours, *self._low, dtype=torch.uint8)
        seen = torch.zeros(len(where), dtype=torch.bool)
        spots = {i: spot for i, box in enumerate(where) if (spot := self._spot(box)) is not None}
        self._tiles.fetch([spot.inside for spot in spots.values()], self._transport, "overview")
        for part in self._in_parts(spots):
            for i, (values, any_seen) in zip(part, self._averaged([spots[i] for i in part]), strict=True):
                low[i], seen[i] = torch.from_numpy(values), any_seen
        return Look(low, seen)

    def forget(self, top: int) -> None:
        """Drop the tiles that no box below this row of the other scene lies on."""
        rows = self._outline(top)[1] * (self.level.height / self._full.height)
        if np.isfinite(rows).all():
            highest, lowest = math.floor(rows.min()) - 1, math.ceil(rows.max()) + 1
            self._tiles.forget(min(max(0, highest), self.level.height), max(0, lowest))

    def _averaged(self, spots: Sequence[_Spot]) -> Iterator[tuple[NDArray[np.uint8], bool]]:
        canvases, views = [], []
        for spot in spots:
            top, left, bottom, right = spot.around
            y, x, stop, end = spot.inside
            canvas = np.zeros((self.level.colours, bottom - top, right - left), np.uint8)
            canvases.append(canvas)
            views.append(canvas[:, y - top : stop - top, x - left : end - left])
        windows = self._tiles.windows([spot.inside for spot in spots], self.name, views)
        for spot, canvas, window in zip(spots, canvases, windows, strict=True):
            top, left, _, _ = spot.around
            y, x, stop, end = spot.inside
            seen = np.zeros(canvas.shape[1:], bool)
            seen[y - top : stop - top, x - left : end - left] = True if window.seen is None else window.seen
            yield averaged(canvas, seen, spot.columns - left, spot.rows - top)

    def _spot(self, box: Box) -> _Spot | None:
        """Return where a box lies; None if it is outside the LR scene, or across a seam of its coordinates."""
        top, left, bottom, right = box
        ys, xs = (np.linspace(a, b, n + 1) for a, b, n in ((top, bottom, self._low[0]), (left, right, self._low[1])))
        columns, rows = self._onto(*np.meshgrid(xs, ys))
        if not (np.isfinite(columns).all() and np.isfinite(rows).all()):
            return None
        if np.ptp(rows) > SPREAD * self._cell[0] + 1 or np.ptp(columns) > SPREAD * self._cell[1] + 1:
            return None
        level, full = self.level, self._full
        rows = np.round(rows * (level.height / full.height), DIGITS)
        columns = np.round(columns * (level.width / full.width), DIGITS)
        around = _whole(rows.min(), columns.min(), rows.max(), columns.max())
        inside = max(0, around[0]), max(0, around[1]), min(level.height, around[2]), min(level.width, around[3])
        return _Spot(columns, rows, around, inside) if inside[0] < inside[2] and inside[1] < inside[3] else None

    def _in_parts(self, spots: dict[int, _Spot]) -> Iterator[list[int]]:
        """Yield boxes in parts whose pixels are bounded; tiles of each part are decoded once."""
        part: list[int] = []
        held = 0
        for i, spot in spots.items():
            top, left, bottom, right = spot.around
            size = (bottom - top) * (right - left) * self.level.colours
            if part and held + size > GROUP_PIXELS:
                yield part
                part, held = [], 0
            part.append(i)
            held += size
        if part:
            yield part

    def _overlaps(self) -> bool:
        columns, rows = self._outline(0)
        known = np.isfinite(columns) & np.isfinite(rows)
        columns, rows = columns[known], rows[known]
        return bool(
            known.any()
            and columns.min() < self._full.width
            and columns.max() > 0
            and rows.min() < self._full.height
            and rows.max() > 0
        )

    def _outline(self, top: float) -> tuple[Points, Points]:
        """Return points all over the other scene from a row on, in pixels of this one's full resolution."""
        height, width = self._size
        steps = np.linspace(0, 1, EDGE_POINTS + 1)
        return self._onto(*np.meshgrid(steps * width, top + steps * (height - top)))

    def _measured(self, cell: tuple[int, int]) -> tuple[float, float]:
        """Measure the rows and columns of the full resolution that a cell spans.

        The median of nine, spread over the scene: one that lies across a seam spans the whole world.
        """
        tops, lefts = (np.linspace(0, side - part, 3) for side, part in zip(self._size, cell, strict=True))
        reaches = []
        for top, left in itertools.product(tops, lefts):
            columns, rows = self._onto(*np.meshgrid([left, left + cell[1]], [top, top + cell[0]]))
            reach = float(np.ptp(rows)), float(np.ptp(columns))
            if all(math.isfinite(side) and side > 0 for side in reach):
                reaches.append(reach)
        if not reaches:
            raise DataError(f"{self.name}: cannot be laid under {self._above}: correct the georeference of both")
        down, across = (float(np.median(sides)) for sides in zip(*reaches, strict=True))
        return down, across


def low_level_for(header: Header, cell: tuple[float, float], low: tuple[int, int]) -> Level:
    """Return the coarsest level that is at least as fine as LR; full resolution if even that is coarser.

    Args:
        cell: rows and columns of full resolution that LR is made from.
    """
    full = header.levels[0]
    wanted = min(side / pixels for side, pixels in zip(cell, low, strict=True)) * SAME_SCALE
    fit = [
        level
        for level in header.levels[1:]
        if full.width / level.width <= wanted and full.height / level.height <= wanted and level.colours == full.colours
    ]
    return fit[-1] if fit else full


def averaged(
    values: NDArray[np.uint8], seen: NDArray[np.bool_], columns: Points, rows: Points
) -> tuple[NDArray[np.uint8], bool]:
    """Average what lies under each pixel of LR, and return whether any of it is seen.

    Args:
        values: ``(C, height, width)``.
        seen: ``(height, width)``.
        columns, rows: ``(h + 1, w + 1)``, where the corners of LR's pixels lie in ``values``.
    """
    size = columns.shape[0] - 1, columns.shape[1] - 1
    box = float(rows[0, 0]), float(columns[0, 0]), float(rows[-1, -1]), float(columns[-1, -1])
    if _alike(columns, rows):
        return area_resampled(values, box, (0, 0, *values.shape[1:]), size), bool(seen.any())
    across = max(float(np.hypot(*(np.diff(a, axis=1) for a in (columns, rows))).max()), 1.0)
    down = max(float(np.hypot(*(np.diff(a, axis=0) for a in (columns, rows))).max()), 1.0)
    points = tuple(min(MOST_POINTS, max(LEAST_POINTS, round(POINTS * side))) for side in (down, across))
    means = np.empty((len(values), *size), np.uint8)
    any_seen = False
    at_a_time = max(1, AT_A_TIME // (points[0] * points[1] * size[1]))
    for start in range(0, size[0], at_a_time):
        stop = min(start + at_a_time, size[0])
        y, x = (_between(corners[start : stop + 1], *points) for corners in (rows, columns))
        y = np.clip(y.astype(int), 0, values.shape[1] - 1)
        x = np.clip(x.astype(int), 0, values.shape[2] - 1)
        parts = values[:, y, x].reshape(len(values), stop - start, points[0], size[1], points[1])
        means[:, start:stop] = np.rint(parts.mean((2, 4), dtype=np.float32))
        any_seen = any_seen or bool(seen[y, x].any())
    return means, any_seen


def _alike(columns: Points, rows: Points) -> bool:
    """Check that rows and columns of both scenes run the same way, evenly."""
    tiny = 10.0 ** (1 - DIGITS)
    even = [np.linspace(line[0], line[-1], len(line)) for line in (rows[:, 0], columns[0])]
    return bool(
        (np.abs(rows - even[0][:, None]) < tiny).all()
        and (np.abs(columns - even[1][None]) < tiny).all()
        and rows[0, 0] < rows[-1, 0]
        and columns[0, 0] < columns[0, -1]
    )


def _between(corners: Points, down: int, across: int) -> Points:
    """Return values at points spread evenly over each pixel, from those at the pixels' corners."""
    found: Points = _spread(corners.shape[0] - 1, down) @ corners @ _spread(corners.shape[1] - 1, across).T
    return found


def _spread(pixels: int, parts: int) -> Points:
    """Return how much of each corner's value a point has: ``(pixels * parts, pixels + 1)``."""
    at = (np.arange(pixels * parts) + 0.5) / parts
    found: Points = np.clip(1 - np.abs(at[:, None] - np.arange(pixels + 1)), 0, None)
    return found


def _whole(top: float, left: float, bottom: float, right: float) -> Box:
    return math.floor(top), math.floor(left), math.ceil(bottom), math.ceil(right)
