"""Read image files, and open each only when a patch of it is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

import torch
from torch import Tensor

from patchdrop.grid import Grid
from patchdrop.packed import Packed, gather
from patchdrop.read.images import read_image
from patchdrop.read.source import Reader


class ImageFiles:
    """HR images on disk, opened when they are needed, each once.

    Args:
        threads: decode side by side.

    Attributes:
        opened: for each file, whether its HR pixels were asked for.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], channels: int, threads: Executor) -> None:
        self.paths = list(paths)
        self.size = size
        self.channels = channels
        self.opened = [False] * len(self.paths)
        self._threads = threads
        self._decoding: dict[int, Future[Tensor]] = {}

    def ask(self, positions: Iterable[int]) -> None:
        """Begin to decode some files, and do not wait for them."""
        for position in positions:
            self.opened[position] = True
            if position not in self._decoding:
                path = self.paths[position]
                self._decoding[position] = self._threads.submit(read_image, path, self.size, self.channels)

    def high(self, position: int) -> Tensor:
        """Return HR of one file, ``(C, H, W)`` uint8; raises DataError if it cannot be read."""
        self.ask([position])
        return self._decoding[position].result()

    def reader(self, grid: Grid) -> Reader:
        """Return a reader of the chosen patches; it does not open a file without a chosen patch."""

        def read(choice: Tensor) -> Packed:
            high = torch.zeros(len(self.paths), self.channels, *self.size, dtype=torch.uint8)
            positions = zoomed(choice)
            self.ask(positions)
            for position in positions:
                high[position] = self.high(position)
            return gather(high, choice.cpu(), grid).to(choice.device)

        return read


def zoomed(choice: Tensor) -> list[int]:
    """List the images that have a chosen patch, ``choice (B, P)`` bool."""
    found: list[int] = choice.any(1).nonzero().flatten().tolist()
    return found
