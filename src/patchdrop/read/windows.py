"""Read whole windows of a tiled scene, anywhere in it, to train a model on.

HR are the window's own pixels, and LR is what `TiledScene` shows of the same box, so that a model is trained on what
it will see. If a scene has no overview for that, which serving refuses, LR is HR averaged over area.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from patchdrop.errors import DataError
from patchdrop.grid import Shape
from patchdrop.read.tiled import GROUP_PIXELS, look_at, low_level, misfit
from patchdrop.tiff.directory import read_header
from patchdrop.tiff.resample import area_resampled
from patchdrop.tiff.tiles import Box, Tiles
from patchdrop.transport.ranges import Transport


class WindowBatch(NamedTuple):
    """A batch of windows as read."""

    high: Tensor
    """``(B, C, H, W)`` uint8."""
    low: Tensor
    """``(B, C, h, w)`` uint8."""
    seen: Tensor
    """``(B,)`` bool: whether any pixel is neither nodata nor transparent."""


class Windows:
    """A scene whose windows are read; a tile that several of them share is fetched once.

    Args:
        transport: where its bytes come from; its ledger counts them.
        shape: sizes and bands of the model.

    Raises:
        DataError: it cannot be read in parts, or does not fit the model.
    """

    def __init__(self, transport: Transport, shape: Shape) -> None:
        self._transport = transport
        self._shape = shape
        header = read_header(transport)
        reason = misfit(header, shape, overview=False)
        if reason:
            raise DataError(f"{transport.name}: {reason}")
        self._full, overview = header.levels[0], low_level(header, shape)
        self._high = Tiles(self._full, header.start, 0)
        self._low = None if overview is None else Tiles(overview, header.start, 0)

    @property
    def overview(self) -> bool:
        """Whether LR comes from an overview, rather than from HR."""
        return self._low is not None

    def misplaced(self, box: Box) -> str:
        """Say why a box is no window of this scene, and what to do; empty if it is one."""
        top, left, bottom, right = box
        height, width = self._shape.high
        if (bottom - top, right - left) != (height, width):
            return (
                f"box of {right - left} x {bottom - top} px, the model's HR images are {width} x {height}: "
                "correct it, or set --high"
            )
        if top < 0 or left < 0 or bottom > self._full.height or right > self._full.width:
            return f"box outside the scene's {self._full.width} x {self._full.height} px: correct it"
        return ""

    def groups(self, where: Sequence[Box]) -> Iterator[list[int]]:
        """Yield positions of boxes from top to bottom, in groups; after each, tiles above the next one are dropped."""
        order = sorted(range(len(where)), key=lambda i: where[i])
        size = max(1, GROUP_PIXELS // (self._shape.channels * self._shape.high[0] * self._shape.high[1]))
        for start in range(0, len(order), size):
            yield order[start : start + size]
            if start + size < len(order):
                self._forget(where[order[start + size]][0])

    def fetch(self, where: Sequence[Box]) -> None:
        """Fetch the tiles that cover some boxes, and decode none of HR; for a transport that keeps them."""
        self._high.fetch(where, self._transport, "patch")
        if self._low is not None:
            look_at(self._low, self._full, where, self._transport, self._shape.low)

    def read(self, where: Sequence[Box]) -> WindowBatch:
        """Read HR and LR of some boxes.

        Raises:
            DataError: a tile cannot be had or is damaged.
        """
        self._high.fetch(where, self._transport, "patch")
        windows = self._high.windows(where, self._transport.name)
        high = torch.from_numpy(np.stack([window.values for window in windows]))
        if self._low is not None:
            return WindowBatch(high, *look_at(self._low, self._full, where, self._transport, self._shape.low))
        around = (0, 0, *self._shape.high)
        low = [area_resampled(w.values, tuple(map(float, around)), around, self._shape.low) for w in windows]  # type: ignore[arg-type]
        seen = [w.seen is None or bool(w.seen.any()) for w in windows]
        return WindowBatch(high, torch.from_numpy(np.stack(low)), torch.tensor(seen, dtype=torch.bool))

    def release(self) -> None:
        """Drop all tiles."""
        self._forget(None)

    def _forget(self, top: int | None) -> None:
        self._high.forget(top)
        if self._low is not None:
            self._low.forget(None if top is None else int(top * self._low.level.height / self._full.height))
