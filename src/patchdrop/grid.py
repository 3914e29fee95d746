"""Patch geometry: the only file that knows where a patch lies in an image.

Patches are numbered row by row, 0 is the top left. An image whose side is not a multiple of the grid
is still tiled exactly once: patch edges fall at ``floor(i * length / parts)``, so sizes differ by at
most one pixel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from patchdrop.errors import UsageError

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Grid:
    """A grid that divides an image into ``rows x cols`` patches."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise UsageError(f"grid {self}: needs at least one row and one column")

    def __str__(self) -> str:
        return str(self.rows) if self.rows == self.cols else f"{self.rows}x{self.cols}"

    @property
    def patches(self) -> int:
        """P, the number of patches."""
        return self.rows * self.cols

    @classmethod
    def parse(cls, text: str) -> Grid:
        """Parse a grid from text: ``"4"`` is 4 x 4, ``"3x5"`` is 3 rows of 5 patches.

        Raises:
            UsageError: the text is neither.
        """
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(text).strip())
        if match is None:
            raise UsageError(f"grid {text!r}: write 4 for 4 x 4, or 3x5 for 3 rows of 5 patches")
        rows = int(match[1])
        return cls(rows, int(match[2]) if match[2] else rows)

    def check(self, height: int, width: int) -> None:
        """Raise UsageError if an image is too small to hold one pixel per patch."""
        if height < self.rows or width < self.cols:
            raise UsageError(
                f"a {height} x {width} px image cannot hold a {self.rows} x {self.cols} grid: "
                "use a larger image size or a coarser --grid"
            )


class Shape(NamedTuple):
    """The sizes, grid and channels of a model's input."""

    high: Size
    """Size of HR."""
    low: Size
    """Size of LR."""
    grid: Grid
    channels: int


class Named(NamedTuple):
    """The sizes and the grid that a user has given; None for the others."""

    high: Size | None
    low: Size | None
    grid: Grid | None


def named(high: str, low: str, grid: str) -> Named:
    """Parse sizes and grid from text; an empty text means that none is given.

    Raises:
        UsageError: a text is not a size or a grid.
    """
    high_size, low_size = (size_of(text, name) if text else None for text, name in ((high, "high"), (low, "low")))
    return Named(high_size, low_size, Grid.parse(grid) if grid else None)


def shape_of(high: str, low: str, grid: str, channels: int) -> Shape:
    """Parse sizes and grid from text; all of them must be given.

    Raises:
        UsageError: a text is empty, or not a size or a grid; or the grid has more patches than HR can hold.
    """
    high_size, low_size, parts = found = named(high, low, grid)
    if high_size is None or low_size is None or parts is None:
        missing = found._fields[found.index(None)]
        raise UsageError(f"{missing}: is not named, give --{missing}")
    parts.check(*high_size)
    return Shape(high_size, low_size, parts, channels)


def size_of(text: str, name: str) -> Size:
    """Parse ``"128"`` or ``"96x160"`` as (height, width).

    Raises:
        UsageError: the text is neither, or a side is 0.
    """
    parts = str(text).split("x")
    if len(parts) > 2 or not all(p.isdecimal() and int(p) > 0 for p in parts):
        raise UsageError(f"{name}: {text!r} is no image size, write 128 or 96x160 (height x width)")
    return int(parts[0]), int(parts[-1])


def size_text(size: Size) -> str:
    """Return the text that `size_of` parses."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def edges(length: int, parts: int) -> list[int]:
    """Return the ``parts + 1`` patch edges along one side of ``length`` pixels."""
    return [i * length // parts for i in range(parts + 1)]


def patch_size(grid: Grid, height: int, width: int) -> tuple[int, int]:
    """Return height and width of the largest patch; every packed patch is padded to them."""
    return -(-height // grid.rows), -(-width // grid.cols)


def boxes(grid: Grid, height: int, width: int) -> list[tuple[int, int, int, int]]:
    """Return ``(top, left, bottom, right)`` of each patch in pixels, row-major, end exclusive."""
    grid.check(height, width)
    ys, xs = edges(height, grid.rows), edges(width, grid.cols)
    return [(ys[r], xs[c], ys[r + 1], xs[c + 1]) for r in range(grid.rows) for c in range(grid.cols)]
