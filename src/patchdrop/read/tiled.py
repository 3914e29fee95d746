"""Cut a tiled scene into cells: read LR from an overview, HR patches from the tiles that cover them, and nothing else.

A cell is an image of the model's HR size on the scene's own pixel grid, row by row from the top left. If the scene is
no multiple of it, the last row and the last column of cells end at the scene's border, so they overlap their
neighbours and no pixel is left out.

LR comes from the coarsest overview that is at least as fine as LR, averaged over area if its pixels are not LR's; or
from another scene (`patchdrop.read.pairs`). A cell may have another size in pixels than HR (cells of a ground size):
HR then comes from the coarsest level that is at least as fine as HR, averaged likewise.

Cells are taken in groups, row by row. A tile is fetched once: its bytes are held until the cells have passed its last
row. So memory is bounded by two rows of tiles and two groups', as they are stored, and by the pixels of a part of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from patchdrop.errors import DataError
from patchdrop.grid import Shape, boxes, patch_size
from patchdrop.packed import Packed
from patchdrop.read.source import Reader
from patchdrop.tiff.decode import unreadable
from patchdrop.tiff.directory import Georeference, Header, Level, read_header
from patchdrop.tiff.resample import Exact, in_level, resampled
from patchdrop.tiff.tiles import Box, Tiles
from patchdrop.transport.ledger import Cost, Ledger
from patchdrop.transport.ranges import Priced, Transport, joined

GROUP_PIXELS = 2**27
"""Most HR samples of all cells of a group, chosen or not; one cell may have more."""
PART_PIXELS = 2**25
"""Most HR samples of a group that are decoded at a time."""
OVERVIEW_BYTES = 2**24
"""An overview of at most this many bytes, as stored, is asked for at once; a larger one group by group."""
SAME_SCALE = 1.01
"""An overview this much coarser than LR still counts as LR's size: writers round sides differently."""


class Look(NamedTuple):
    """LR of some cells."""

    low: Tensor
    """``(B, C, h, w)`` uint8."""
    seen: Tensor
    """``(B,)`` bool: whether any pixel is neither nodata nor transparent."""


class LowSource(Protocol):
    """A source of LR for a scene's cells other than the scene's own overview."""

    def look(self, where: Sequence[Box]) -> Look:
        """Return LR of boxes in the scene's pixels."""

    def forget(self, top: int) -> None:
        """Drop what is held: no box above this row of the scene will be looked at any more."""


class Cells:
    """The places of a scene's cells and of their patches.

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
        """Return where a cell lies in the scene."""
        height, width = self.cell
        top = min(cell // self.cols * height, self.size[0] - height)
        left = min(cell % self.cols * width, self.size[1] - width)
        return top, left, top + height, left + width

    def patch_box(self, cell: int, patch: int) -> Box:
        """Return where a patch of a cell lies in the scene."""
        y, x, _, _ = self.cell_box(cell)
        top, left, bottom, right = self._patches[patch]
        return top + y, left + x, bottom + y, right + x

    def in_groups(self, pixels: int = 0) -> Iterator[range]:
        """Yield the cells in their order, in groups of at most `GROUP_PIXELS`.

        Args:
            pixels: pixels of a cell in the level that it is read from, if more than HR's.
        """
        size = max(1, GROUP_PIXELS // (max(pixels, self.shape.high[0] * self.shape.high[1]) * self.shape.channels))
        for start in range(0, self.cells, size):
            yield range(start, min(start + size, self.cells))

    def in_parts(self, cells: int) -> Iterator[slice]:
        """Yield the positions of a group's cells, in parts of at most `PART_PIXELS`."""
        size = max(1, PART_PIXELS // (self.shape.high[0] * self.shape.high[1] * self.shape.channels))
        for start in range(0, cells, size):
            yield slice(start, start + size)

    def chosen(self, cells: Sequence[int], choice: Tensor) -> list[Box]:
        """Return boxes of the chosen patches, ``choice (B, P)`` of these cells."""
        return [self.patch_box(cells[i], p) for i, p in choice.cpu().nonzero().tolist()]


class TiledScene(Cells):
    """A scene whose cells can be looked at and read.

    Args:
        transport: where its bytes come from; its ledger counts them.
        shape: sizes, grid and bands of the model.
        gap: ranges at most this many bytes apart are read as one.
        header: of the scene, if it has been read already.
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
        """The level that LR comes from; None if it comes from another scene."""
        return self.low.level if isinstance(self.low, _OwnOverview) else None

    @property
    def georeference(self) -> Georeference | None:
        """The scene's place on Earth; None if the header has none."""
        return self.header.georeference

    def groups(self) -> Iterator[range]:
        """Yield the cells in their order, in groups.

        A group may be asked for while the one before it is still to be read: tiles are dropped when neither of them,
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
        """Return LR of some cells, from the overview or from another scene."""
        return self.low.look([self.cell_box(cell) for cell in cells])

    def ask(self, cells: Sequence[int], choice: Tensor) -> None:
        """Ask for the tiles of a whole group's choice, which is then read in parts."""
        self._high.fetch(self._in_tiles(cells, choice), self.transport, "patch")

    def reader(self, cells: Sequence[int]) -> Reader:
        """Return a reader of the chosen patches of some cells; it fetches the tiles that cover them, no other byte."""
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
        """Count in ``ledger`` what `reader` would read for this choice, without reading.

        A scene is either priced or read, group by group: tiles that were priced count as held.
        """
        self._high.fetch(self._in_tiles(cells, choice), Priced(self.transport, ledger), "patch")

    def _in_tiles(self, cells: Sequence[int], choice: Tensor) -> list[Box]:
        """Return boxes of the chosen patches in the level that HR comes from."""
        if self.cell == self.shape.high:
            return self.chosen(cells, choice)
        return [in_level(self._high.level, self.full, box)[1] for box, _ in self._exactly(cells, choice)]

    def _resampling_reader(self, cells: Sequence[int]) -> Reader:
        """Return a reader as `reader` does, for cells of another size than HR."""

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
        """Return where the chosen patches lie in the scene, in parts of pixels, and their height and width in HR."""
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
        """Return the cost of reading all HR tiles, without the header."""
        level = self._high.level
        spans = [level.span(int(tile)) for tile in np.flatnonzero(level.counts)]
        requests = joined([s for s in spans if s.stop > len(self.header.start)], self.gap)
        return Cost(len(requests), sum(span.length for span in requests))


def look_at(tiles: Tiles, full: Level, where: Sequence[Box], transport: Transport, size: tuple[int, int]) -> Look:
    """Return LR of boxes of a scene, from the tiles of its overview.

    Args:
        full: the scene's full resolution, in whose pixels the boxes are.
        size: LR's height and width.
    """
    found, seen = resampled(tiles, full, [(box, size) for box in where], transport, "overview")
    low = torch.empty(len(where), tiles.level.colours, *size, dtype=torch.uint8)
    for into, values in zip(low, found, strict=True):
        into.copy_(torch.from_numpy(values))
    return Look(low, torch.tensor(seen, dtype=torch.bool))


class _OwnOverview:
    """A source of LR: the scene's own overview."""

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
    """Say why a scene cannot be read for such a model, and what to do; empty if it can.

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
    """Do as `misfit` for a scene that only LR comes from, and which may be smaller than a cell."""
    return misfit(header, shape._replace(high=(1, 1)), overview=False)


def low_level(header: Header, shape: Shape) -> Level | None:
    """Return the coarsest overview that is at least as fine as LR; None if there is none."""
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
    """Return the coarsest level that is at least as fine as HR, where a cell of ``cell`` pixels becomes ``high``."""
    full = header.levels[0]
    wanted = min(side / pixels for side, pixels in zip(cell, high, strict=True)) * SAME_SCALE
    fit = [
        level
        for level in header.levels
        if full.width / level.width <= wanted and full.height / level.height <= wanted and level.colours == full.colours
    ]
    return fit[-1] if fit else full
