"""The plain way to say which pixels a choice covers, against which packing and canvas are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from patchdrop.grid import Grid, edges


def pixel_mask(choice: Tensor, grid: Grid, height: int, width: int) -> Tensor:
    """The pixels that a choice covers.

    Args:
        choice: ``(B, P)`` bool, row-major.

    Returns:
        ``(B, height, width)`` bool.
    """
    cells = choice.view(-1, grid.rows, grid.cols)
    rows = owner(height, grid.rows).to(choice.device)
    cols = owner(width, grid.cols).to(choice.device)
    return cells[:, rows][:, :, cols]


def choice_of_mask(mask: Tensor, grid: Grid) -> Tensor:
    """Inverse of `pixel_mask`: ``(B, H, W)`` bool to ``(B, P)`` bool, by each patch's first pixel."""
    height, width = mask.shape[-2:]
    rows, cols = edges(height, grid.rows)[:-1], edges(width, grid.cols)[:-1]
    return mask[:, rows][:, :, cols].flatten(1)


def owner(length: int, parts: int) -> Tensor:
    """For each pixel along a side, the patch row (or column) it belongs to: ``(length,)`` int64."""
    marks = torch.tensor(edges(length, parts))
    return torch.repeat_interleave(torch.arange(parts), marks.diff())
