"""A tiled scene cut into cells: LR from an overview, HR patches from the tiles that cover them, and nothing else.

A cell is an image of the model's HR size on the scene's own pixel grid, row by row from the top left. Where the scene
is no multiple of it, the last row and the last column of cells end at the scene's border, so they overlap their
neighbours and no pixel is left out.

LR comes from the coarsest overview that is at least as fine as LR, averaged over area where its pixels are not LR's; or
from another scene (`patchdrop.read.pairs`). A cell may have another size in pixels than HR (cells of a ground size): HR
then comes from the coarsest level that is at least as fine as HR, averaged likewise.

Cells are taken in groups, row by row. A tile is fetched once: its bytes are held until the cells have passed its last
row. So memory is bounded by two rows of tiles and two groups', as they are stored, and by the pixels of a part of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdrop.errors import DataError
from patchdrop.grid import Grid, boxes, patch_size
from patchdrop.packed import Packed
from patchdrop.read.decode import Pixels, decode, unreadable
from patchdrop.read.ledger import Cost, Ledger, Purpose
from patchdrop.read.source import Reader
from patchdrop.read.tiff import Georeference, Header, Level, read_header
from patchdrop.read.transport import Priced, Span, Transport, answered, joined

GROUP_PIXELS = 2**27
"""Cells of a group have at most this many HR samples in all, chosen or not; one cell may have more."""
PART_PIXELS = 2**25
"""As many of a group are decoded at a time."""
OVERVIEW_BYTES = 2**24
"""An overview of at most so many bytes, as stored, is asked for at once; a larger one group by group."""
DECODERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Tiles decoded at once; Pillow and zlib leave the interpreter free meanwhile."""
TINY = 1e-6
"""A whole number of pixels that multiplication made this much larger or smaller is still that number."""
SAME_SCALE = 1.01
"""An overview this much coarser than LR still counts as LR's size: writers round sides differently."""

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels, end exclusive."""
Exact = tuple[float, float, float, float]
"""The same, in parts of pixels."""


class Shape(NamedTuple):
    """What a model takes."""

    high: tuple[int, int]
    low: tuple[int, int]
    grid: Grid
    channels: int


class Look(NamedTuple):
    """LR of some cells."""

    low: Tensor
    """``(B, C, h, w)`` uint8."""
    seen: Tensor
    """``(B,)`` bool: whether any pixel is neither nodata nor transparent."""


class LowSource(Protocol):
    """Where LR of a scene's cells comes from, if not from the scene's own overview."""

    def look(self, where: Sequence[Box]) -> Look:
        """LR of boxes in the scene's pixels."""

    def forget(self, top: int) -> None:
        """No box above this row of the scene will be looked at any more."""


class Cells:
    """Where the cells of a scene lie, and their patches.

    Args:
        size: height and width of the scene in pixels, at least a cell's.
        cell: height and width of a cell in pixels of the scene; None: HR's.
    """

    def __init__(self, size: tuple[int, int], shape: Shape, cell: tuple[int, int] | None = None) -> None:
        self.size = size
        self.shape = shape
        self.cell = cell or shape.high
        self.rows, self.cols = (-(-side // part) for side, part in zip(size, self.cell, strict=True))
        self._patches = boxes(shape.grid, *self.cell)

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.rows * self.cols

    def cell_box(self, cell: int) -> Box:
        """Where a cell lies in the scene."""
        height, width = self.cell
        top = min(cell // self.cols * height, self.size[0] - height)
        left = min(cell % self.cols * width, self.size[1] - width)
        return top, left, top + height, left + width

    def patch_box(self, cell: int, patch: int) -> Box:
        """Where a patch of a cell lies in the scene."""
        y, x, _, _ = self.cell_box(cell)
        top, left, bottom, right = self._patches[patch]
        return top + y, left + x, bottom + y, right + x

    def in_groups(self, pixels: int = 0) -> Iterator[range]:
        """The cells in their order, in groups of at most `GROUP_PIXELS`.

        Args:
            pixels: of a cell where it is read, if they are more than HR's.
        """
        size = max(1, GROUP_PIXELS // (max(pixels, self.shape.high[0] * self.shape.high[1]) * self.shape.channels))
        for start in range(0, self.cells, size):
            yield range(start, min(start + size, self.cells))

    def in_parts(self, cells: int) -> Iterator[slice]:
        """The positions of a group's cells, in parts of at most `PART_PIXELS`."""
        size = max(1, PART_PIXELS // (self.shape.high[0] * self.shape.high[1] * self.shape.channels))
        for start in range(0, cells, size):
            yield slice(start, start + size)

    def chosen(self, cells: Sequence[int], choice: Tensor) -> list[Box]:
        """Boxes of the chosen patches, ``choice (B, P)`` of these cells."""
        return [self.patch_box(cells[i], p) for i, p in choice.cpu().nonzero().tolist()]


class TiledScene(Cells):
    """One scene, ready to be looked at and read.

    Args:
        transport: where its bytes come from; its ledger counts them.
        shape: sizes, grid and bands of the model.
        gap: ranges at most this many bytes apart are read as one.
        header: of the scene, where it has been read already.
        cell: height and width of a cell in pixels of the scene; None: HR's.
        low: where LR comes from; None: from the scene's own overview.

    Raises:
        DataError: it cannot be read in parts, or does not fit the model.
    """

    def __init__(
        self,
        transport: Transport,
        shape: Shape,
        gap: int = 0,
        header: Header | None = None,
        cell: tuple[int, int] | None = None,
        low: LowSource | None = None,
    ) -> None:
        self.transport = transport
        self.name = transport.name
        self.gap = gap
        self.header = header or read_header(transport)
        self.full = self.header.levels[0]
        as_cut = shape._replace(high=cell or shape.high)
        reason = misfit(self.header, as_cut, overview=low is None)
        if reason:
            raise DataError(f"{self.name}: {reason}")
        super().__init__((self.full.height, self.full.width), shape, cell)
        self._high = Tiles(high_level(self.header, shape.high, self.cell), self.header.start, gap)
        self.low = low or _OwnOverview(self.header, as_cut, transport, gap)

    @property
    def overview(self) -> Level | None:
        """What LR comes from; None where that is another scene."""
        return self.low.level if isinstance(self.low, _OwnOverview) else None

    @property
    def georeference(self) -> Georeference | None:
        """Where it lies on Earth."""
        return self.header.georeference

    def groups(self) -> Iterator[range]:
        """The cells in their order, in groups.

        A group may be asked for while the one before it is still to be read: tiles are let go where neither of them,
        nor a later cell, needs them.
        """
        level = self._high.level
        down, across = level.height / self.full.height, level.width / self.full.width
        before = 0
        for group in self.in_groups(round(self.cell[0] * down * self.cell[1] * across)):
            top = self.cell_box(before)[0]
            self._high.forget(int(top * down))
            self.low.forget(top)
            before = group.start
            yield group

    def look(self, cells: Sequence[int]) -> Look:
        """LR of some cells, from the overview or from another scene."""
        return self.low.look([self.cell_box(cell) for cell in cells])

    def ask(self, cells: Sequence[int], choice: Tensor) -> None:
        """Ask for the tiles of a whole group's choice, which is then read in parts."""
        self._high.fetch(self._in_tiles(cells, choice), self.transport, "patch")

    def reader(self, cells: Sequence[int]) -> Reader:
        """Reads the chosen patches of some cells; fetches the tiles that cover them and no other byte."""
        if self.cell != self.shape.high:
            return self._resampling_reader(cells)

        def read(choice: Tensor) -> Packed:
            image, patch = choice.cpu().nonzero(as_tuple=True)
            where = self.chosen(cells, choice)
            self._high.fetch(where, self.transport, "patch")
            height, width = patch_size(self.shape.grid, *self.shape.high)
            pixels = np.zeros((len(where), self.shape.channels, height, width), np.uint8)
            into = [v[:, : b - t, : r - x] for v, (t, x, b, r) in zip(pixels, where, strict=True)]
            self._high.windows(where, self.name, into)
            return Packed(torch.from_numpy(pixels), image, patch, len(cells)).to(choice.device)

        return read

    def price(self, cells: Sequence[int], choice: Tensor, ledger: Ledger) -> None:
        """Count in ``ledger`` what `reader` would read for this choice; reads nothing.

        A scene is either priced or read, group by group: tiles that were priced count as held.
        """
        self._high.fetch(self._in_tiles(cells, choice), Priced(self.transport, ledger), "patch")

    def _in_tiles(self, cells: Sequence[int], choice: Tensor) -> list[Box]:
        """Boxes of the chosen patches in the level that HR comes from."""
        if self.cell == self.shape.high:
            return self.chosen(cells, choice)
        return [_in_level(self._high.level, self.full, box)[1] for box, _ in self._exactly(cells, choice)]

    def _resampling_reader(self, cells: Sequence[int]) -> Reader:
        """As `reader`, for cells of another size than HR."""

        def read(choice: Tensor) -> Packed:
            image, patch = choice.cpu().nonzero(as_tuple=True)
            where = self._exactly(cells, choice)
            size = patch_size(self.shape.grid, *self.shape.high)
            pixels = torch.zeros(len(where), self.shape.channels, *size, dtype=torch.uint8)
            found, _ = resampled(self._high, self.full, where, self.transport, "patch")
            for into, values in zip(pixels.numpy(), found, strict=True):
                into[:, : values.shape[1], : values.shape[2]] = values
            return Packed(pixels, image, patch, len(cells)).to(choice.device)

        return read

    def _exactly(self, cells: Sequence[int], choice: Tensor) -> list[tuple[Exact, tuple[int, int]]]:
        """Where the chosen patches lie in the scene, in parts of pixels, and their height and width in HR."""
        down, across = (side / high for side, high in zip(self.cell, self.shape.high, strict=True))
        patches = boxes(self.shape.grid, *self.shape.high)
        found = []
        for i, p in choice.cpu().nonzero().tolist():
            y, x, _, _ = self.cell_box(cells[i])
            top, left, bottom, right = patches[p]
            exact = y + top * down, x + left * across, y + bottom * down, x + right * across
            found.append((exact, (bottom - top, right - left)))
        return found

    def everything(self) -> Cost:
        """What reading all HR tiles would cost, without the header."""
        level = self._high.level
        spans = [level.span(int(tile)) for tile in np.flatnonzero(level.counts)]
        requests = joined([s for s in spans if s.stop > len(self.header.start)], self.gap)
        return Cost(len(requests), sum(span.length for span in requests))


def look_at(tiles: Tiles, full: Level, where: Sequence[Box], transport: Transport, size: tuple[int, int]) -> Look:
    """LR of boxes of a scene, from the tiles of its overview.

    Args:
        full: the scene's full resolution, in whose pixels the boxes are.
        size: LR's height and width.
    """
    found, seen = resampled(tiles, full, [(box, size) for box in where], transport, "overview")
    low = torch.empty(len(where), tiles.level.colours, *size, dtype=torch.uint8)
    for into, values in zip(low, found, strict=True):
        into.copy_(torch.from_numpy(values))
    return Look(low, torch.tensor(seen, dtype=torch.bool))


def resampled(
    tiles: Tiles,
    full: Level,
    where: Sequence[tuple[Exact, tuple[int, int]]],
    transport: Transport,
    purpose: Purpose,
) -> tuple[list[NDArray[np.uint8]], list[bool]]:
    """Boxes of a scene from the tiles of one of its levels, averaged over area.

    Args:
        full: the scene's full resolution, in whose pixels the boxes are.
        where: boxes, and height and width of what each becomes.

    Returns:
        ``(C, height, width)`` of each box, and whether any pixel of it is neither nodata nor transparent.
    """
    placed = [_in_level(tiles.level, full, box) for box, _ in where]
    outer = [around for _, around in placed]
    tiles.fetch(outer, transport, purpose)
    windows = tiles.windows(outer, transport.name)
    found = [
        area_resampled(window.values, exact, around, size)
        for window, (exact, around), (_, size) in zip(windows, placed, where, strict=True)
    ]
    return found, [w.seen is None or bool(w.seen.any()) for w in windows]


def _in_level(level: Level, full: Level, box: Exact) -> tuple[Exact, Box]:
    """A box of the scene in pixels of a level: as it is, and the whole pixels that it touches."""
    down, across = level.height / full.height, level.width / full.width
    top, left, bottom, right = box[0] * down, box[1] * across, box[2] * down, box[3] * across
    return (top, left, bottom, right), (
        int(top + TINY),
        int(left + TINY),
        _up(bottom, level.height),
        _up(right, level.width),
    )


class _OwnOverview:
    """LR from the scene's own overview."""

    def __init__(self, header: Header, shape: Shape, transport: Transport, gap: int) -> None:
        overview = low_level(header, shape)
        assert overview is not None, "see misfit"
        self.level = overview
        self._full, self._size, self._transport = header.levels[0], shape.low, transport
        self._tiles = Tiles(overview, header.start, gap)
        self._ahead = int(overview.counts.sum()) <= OVERVIEW_BYTES

    def look(self, where: Sequence[Box]) -> Look:
        if self._ahead:  # every cell is looked at, so a later group's tiles may as well come with the first one's
            self._tiles.fetch([(0, 0, self.level.height, self.level.width)], self._transport, "overview")
            self._ahead = False
        return look_at(self._tiles, self._full, where, self._transport, self._size)

    def forget(self, top: int) -> None:
        self._tiles.forget(int(top * self.level.height / self._full.height))


def misfit(header: Header, shape: Shape, overview: bool = True) -> str:
    """Why a scene cannot be read for such a model, and what to do; empty where it can.

    Args:
        overview: whether one that LR can come from is needed.
    """
    full = header.levels[0]
    for what, level in (("it", full), *((f"its overview of {v.width} px", v) for v in header.levels[1:])):
        reason = unreadable(level)
        if reason:
            return f"{what} {reason}: see `patchdrop check`"
    if full.colours != shape.channels:
        return f"{full.colours} bands, the model takes {shape.channels}: pick some with `gdal_translate -b`"
    if full.height < shape.high[0] or full.width < shape.high[1]:
        return (
            f"{full.width} x {full.height} px is smaller than the model's HR image, {shape.high[1]} x {shape.high[0]}: "
            "predict it as a plain image"
        )
    if overview and low_level(header, shape) is None:
        return (
            f"has no overview between full resolution and LR ({shape.high[0] / shape.low[0]:g} times coarser): "
            "see `patchdrop check`, or lay another scene under it with --low-scene"
        )
    return ""


def low_misfit(header: Header, shape: Shape) -> str:
    """As `misfit`, of a scene that only LR comes from, and which may be smaller than a cell."""
    return misfit(header, shape._replace(high=(1, 1)), overview=False)


def low_level(header: Header, shape: Shape) -> Level | None:
    """The coarsest overview that is at least as fine as LR; None where there is none."""
    full = header.levels[0]
    wanted = min(high / low for high, low in zip(shape.high, shape.low, strict=True)) * SAME_SCALE
    fit = [
        level
        for level in header.levels[1:]
        if 1.5 < full.width / level.width <= wanted
        and full.height / level.height <= wanted
        and level.colours == full.colours
    ]
    return fit[-1] if fit else None


def high_level(header: Header, high: tuple[int, int], cell: tuple[int, int]) -> Level:
    """The coarsest level that is at least as fine as HR, where a cell of ``cell`` pixels becomes ``high``."""
    full = header.levels[0]
    wanted = min(side / pixels for side, pixels in zip(cell, high, strict=True)) * SAME_SCALE
    fit = [
        level
        for level in header.levels
        if full.width / level.width <= wanted and full.height / level.height <= wanted and level.colours == full.colours
    ]
    return fit[-1] if fit else full


def covering(level: Level, box: Box) -> list[int]:
    """Numbers of the tiles that hold a pixel of a box, row by row; of the first band where the level is planar."""
    assert level.tile is not None
    height, width = level.tile
    top, left, bottom, right = box
    columns = level.tile_grid[1]
    return [
        row * columns + column
        for row in range(top // height, -(-bottom // height))
        for column in range(left // width, -(-right // width))
    ]


def area_resampled(values: NDArray[np.uint8], box: Exact, around: Box, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A box of pixels averaged over area: each pixel of the result is the mean of what it covers.

    Args:
        values: ``(C, height, width)``, the whole pixels in ``around``.
        box: top, left, bottom, right, in the same coordinates as ``around`` and within it.
        size: height and width of the result.

    Returns:
        ``(C, *size)``; the pixels themselves where nothing has to be averaged.
    """
    if tuple(float(edge) for edge in around) == box and values.shape[1:] == size:
        return values
    down = _weights(box[0] - around[0], box[2] - around[0], values.shape[1], size[0])
    across = _weights(box[1] - around[1], box[3] - around[1], values.shape[2], size[1])
    averaged: NDArray[np.uint8] = np.rint(down @ values.astype(np.float32) @ across.T).astype(np.uint8)
    return averaged


def _weights(start: float, stop: float, length: int, parts: int) -> NDArray[np.float32]:
    """``(parts, length)``: share of each pixel in each of ``parts`` equal pieces of ``start`` to ``stop``."""
    edges = np.linspace(start, stop, parts + 1)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = overlap.clip(0)
    weights: NDArray[np.float32] = (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
    return weights


def _up(edge: float, most: int) -> int:
    return min(most, int(np.ceil(edge - TINY)))


class _Held(NamedTuple):
    """A tile's bytes: a piece of an answer that has come, or is on its way."""

    answer: Future[bytes]
    start: int
    stop: int

    def bytes(self) -> bytes:
        """The tile's own, once they are there."""
        return self.answer.result()[self.start : self.stop]

    def alone(self) -> _Held:
        """The same without the rest of an answer that has come, so that it takes no more memory than it needs."""
        return _held(self.bytes()) if self.came else self

    @property
    def came(self) -> bool:
        """Whether they are there, whole."""
        return self.answer.done() and not self.answer.cancelled() and self.answer.exception() is None


def _held(data: bytes) -> _Held:
    """Bytes that are there already."""
    return _Held(answered([data])[0], 0, len(data))


class Tiles:
    """The bytes of one level's tiles, each fetched once while it may be needed.

    They are decoded as they come: `fetch` asks for them, `windows` waits for each.
    """

    def __init__(self, level: Level, start: bytes, gap: int) -> None:
        self.level = level
        self._start = start
        self._gap = gap
        self._held: dict[int, _Held] = {}
        self._planes = level.bands if level.planar else 1
        self._in_plane = level.tile_grid[0] * level.tile_grid[1]

    def fetch(self, where: Iterable[Box], transport: Transport, purpose: Purpose) -> None:
        """Ask for the tiles that cover some boxes; the file's first bytes, read with the header, are not read again."""
        needed = {tile for box in where for tile in covering(self.level, box)}
        missing = [t + p * self._in_plane for t in sorted(needed) for p in range(self._planes)]
        missing = [tile for tile in missing if tile not in self._held]
        spans = {tile: self.level.span(tile) for tile in missing}
        for tile, span in spans.items():
            if span.length == 0:
                self._held[tile] = _held(b"")
            elif span.stop <= len(self._start):
                self._held[tile] = _held(self._start[span.start : span.stop])
        absent = {tile: span for tile, span in spans.items() if tile not in self._held}
        requests = joined(list(absent.values()), self._gap)
        answers = transport.ask(requests, purpose)
        self._held.update(_cut(absent, requests, answers))

    def forget(self, top: int | None = None, bottom: int | None = None) -> None:
        """Let go of tiles that end above a row of the level, or begin below another; of all without one."""
        assert self.level.tile is not None
        top = self.level.tile[0] * self.level.tile_grid[0] if top is None else top
        bottom = self.level.height if bottom is None else bottom
        first, stop = (
            row * self.level.tile_grid[1] for row in (top // self.level.tile[0], -(-bottom // self.level.tile[0]))
        )
        self._held = {tile: held.alone() for tile, held in self._held.items() if first <= tile % self._in_plane < stop}

    def windows(self, where: Sequence[Box], name: str, into: list[NDArray[np.uint8]] | None = None) -> list[Pixels]:
        """The pixels of each box, in new arrays or in those given; each tile that covers one is decoded once.

        Raises:
            DataError: a tile is damaged or cannot be had; what was asked for besides has then ended too.
        """
        users: dict[int, list[int]] = {}
        for i, box in enumerate(where):
            for tile in covering(self.level, box):
                users.setdefault(tile, []).append(i)
        found = into or [np.empty((self.level.colours, box[2] - box[0], box[3] - box[1]), np.uint8) for box in where]
        seen = [None if self._all_seen else np.ones(pixels.shape[1:], bool) for pixels in found]

        def paint(tile: int) -> None:
            parts = [self._held[tile + p * self._in_plane].bytes() for p in range(self._planes)]
            pixels = decode(self.level, parts, name)
            for i in users[tile]:
                self._paste(tile, pixels, where[i], found[i], seen[i])

        try:
            with ThreadPoolExecutor(DECODERS) as threads:
                list(threads.map(paint, sorted(users)))
        except BaseException:
            self._abandon()
            raise
        return [Pixels(values, mask) for values, mask in zip(found, seen, strict=True)]

    def _abandon(self) -> None:
        """Ask for nothing more; what is on its way is waited for, because it still counts."""
        answers = {held.answer for held in self._held.values()}
        for answer in answers:
            answer.cancel()
        wait(answers)
        self._held = {tile: held for tile, held in self._held.items() if held.came}

    @property
    def _all_seen(self) -> bool:
        return self.level.nodata is None and self.level.alpha is None and bool((self.level.counts > 0).all())

    def _paste(
        self, tile: int, pixels: Pixels, box: Box, values: NDArray[np.uint8], seen: NDArray[np.bool_] | None
    ) -> None:
        """Copy what a tile and a box share."""
        assert self.level.tile is not None
        height, width = self.level.tile
        row, column = divmod(tile, self.level.tile_grid[1])
        y, x = row * height, column * width
        top, left, bottom, right = max(y, box[0]), max(x, box[1]), min(y + height, box[2]), min(x + width, box[3])
        into = slice(top - box[0], bottom - box[0]), slice(left - box[1], right - box[1])
        out = slice(top - y, bottom - y), slice(left - x, right - x)
        values[:, into[0], into[1]] = pixels.values[:, out[0], out[1]]
        if seen is not None and pixels.seen is not None:
            seen[into] = pixels.seen[out]


def _cut(wanted: dict[int, Span], requests: Sequence[Span], answers: Sequence[Future[bytes]]) -> dict[int, _Held]:
    """Each wanted span out of the answer to the request that covers it."""
    starts = [request.start for request in requests]
    found = {}
    for tile, span in wanted.items():
        at = int(np.searchsorted(starts, span.start, side="right")) - 1
        offset = span.start - requests[at].start
        found[tile] = _Held(answers[at], offset, offset + span.length)
    return found
