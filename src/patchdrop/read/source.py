"""Define readers: a choice in, packed patches out."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from patchdrop.grid import Grid
from patchdrop.packed import Packed, gather

Reader = Callable[[Tensor], Packed]


def from_memory(high: Tensor, grid: Grid) -> Reader:
    """Return a reader of HR images that are already in memory.

    Args:
        high: ``(B, C, H, W)`` pixels 0..255.
    """

    def read(choice: Tensor) -> Packed:
        return gather(high, choice, grid)

    return read
