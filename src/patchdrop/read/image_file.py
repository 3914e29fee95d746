"""Read image files, and open each only when a patch of it is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from patchdrop.grid import Grid
from patchdrop.packed import Packed, gather
from patchdrop.read.images import read_image
from patchdrop.read.source import Reader
from patchdrop.tiff.decode import DECODERS

Item = TypeVar("Item")


class ImageFiles:
    """HR images on disk, opened when they are needed.

    Attributes:
        opened: for each file, whether its HR pixels were read.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], channels: int) -> None:
        self.paths = list(paths)
        self.size = size
        self.channels = channels
        self.opened = [False] * len(self.paths)
        self._decoded: dict[int, Tensor] = {}

    def high(self, position: int) -> Tensor:
        """Return HR of one file, ``(C, H, W)`` uint8; raises DataError if it cannot be read."""
        self.opened[position] = True
        if position not in self._decoded:
            self._decoded[position] = read_image(self.paths[position], self.size, self.channels)
        return self._decoded[position]

    def reader(self, grid: Grid) -> Reader:
        """Return a reader of the chosen patches; it does not open a file without a chosen patch."""

        def read(choice: Tensor) -> Packed:
            zoomed = choice.any(1)
            high = torch.zeros(len(self.paths), self.channels, *self.size, dtype=torch.uint8)
            positions = zoomed.nonzero().flatten().tolist()
            for position, pixels in zip(positions, concurrently(self.high, positions), strict=True):
                high[position] = pixels
            return gather(high, choice.cpu(), grid).to(choice.device)

        return read


def concurrently(decode: Callable[[Item], Tensor], items: Iterable[Item]) -> list[Tensor]:
    """Decode images side by side, and return them in order; raises the error of the first that cannot be read."""
    with ThreadPoolExecutor(DECODERS) as threads:
        return list(threads.map(decode, items))
