"""Find the tiles of a level that cover a box, fetch their bytes once, hold them while needed, and decode them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from patchdrop.tiff.decode import DECODERS, Pixels, decode
from patchdrop.tiff.directory import Level
from patchdrop.transport.ledger import Purpose
from patchdrop.transport.ranges import Span, Transport, answered, joined

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels, end exclusive."""


def covering(level: Level, box: Box) -> list[int]:
    """List the tiles that hold a pixel of a box, row by row; those of the first band if the level is planar."""
    assert level.tile is not None
    height, width = level.tile
    top, left, bottom, right = box
    columns = level.tile_grid[1]
    return [
        row * columns + column
        for row in range(top // height, -(-bottom // height))
        for column in range(left // width, -(-right // width))
    ]


class _Held(NamedTuple):
    """A tile's bytes: a slice of an answer that has come, or is on its way."""

    answer: Future[bytes]
    start: int
    stop: int

    def bytes(self) -> bytes:
        """Return the tile's own bytes, waiting for the answer."""
        return self.answer.result()[self.start : self.stop]

    def alone(self) -> _Held:
        """Return a copy without the rest of an answer that has come, so that it takes no more memory than it needs."""
        return _held(self.bytes()) if self.came else self

    @property
    def came(self) -> bool:
        """Whether the answer has come, complete."""
        return self.answer.done() and not self.answer.cancelled() and self.answer.exception() is None


def _held(data: bytes) -> _Held:
    """Hold bytes that are there already."""
    return _Held(answered([data])[0], 0, len(data))


class Tiles:
    """A store of the bytes of one level's tiles, each fetched once while it may be needed.

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
        """Drop tiles that end above a row of the level, or begin below another; all of them if no row is given."""
        assert self.level.tile is not None
        top = self.level.tile[0] * self.level.tile_grid[0] if top is None else top
        bottom = self.level.height if bottom is None else bottom
        first, stop = (
            row * self.level.tile_grid[1] for row in (top // self.level.tile[0], -(-bottom // self.level.tile[0]))
        )
        self._held = {tile: held.alone() for tile, held in self._held.items() if first <= tile % self._in_plane < stop}

    def windows(self, where: Sequence[Box], name: str, into: list[NDArray[np.uint8]] | None = None) -> list[Pixels]:
        """Return the pixels of each box, in new arrays or in those given; each tile that covers one is decoded once.

        Raises:
            DataError: a tile is damaged or cannot be had; all other requests have ended by then.
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
        """Cancel further requests, and wait for those on their way, because they still count."""
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
        """Copy the pixels that a tile and a box share."""
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
    """Cut each wanted span out of the answer to the request that covers it."""
    starts = [request.start for request in requests]
    found = {}
    for tile, span in wanted.items():
        at = int(np.searchsorted(starts, span.start, side="right")) - 1
        offset = span.start - requests[at].start
        found[tile] = _Held(answers[at], offset, offset + span.length)
    return found
