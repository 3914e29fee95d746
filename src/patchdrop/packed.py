"""Pack the chosen patches of a whole batch, and nothing else, into one tensor.

A batch in which images keep 0, 3 and 11 patches carries 14 patches, so work on packed patches costs
what was chosen, by construction.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from patchdrop.grid import Grid, edges, patch_size


@dataclass(frozen=True)
class Packed:
    """The chosen patches of ``batch`` images, image by image, row-major within an image.

    Attributes:
        pixels: ``(N, C, p, q)``, the values of the source (0..255 for 8-bit images). Where the image
            is not divisible by the grid, smaller patches are padded with zeros at the bottom and right.
        image: ``(N,)`` int64, which image of the batch each patch belongs to.
        patch: ``(N,)`` int64, each patch's number in the grid.
        batch: number of images, including those that keep no patch.
        weight: ``(N,)`` or None; multiplies the normalised pixels. Only the straight-through
            estimator sets it, to carry a gradient back to the choice.
    """

    pixels: Tensor
    image: Tensor
    patch: Tensor
    batch: int
    weight: Tensor | None = None

    @property
    def counts(self) -> Tensor:
        """S, patches kept by each image: ``(batch,)`` int64."""
        return self.image.new_zeros(self.batch).index_add(0, self.image, torch.ones_like(self.image))

    def to(self, device: torch.device | str) -> Packed:
        """Return the same patches on another device."""
        weight = None if self.weight is None else self.weight.to(device)
        return Packed(self.pixels.to(device), self.image.to(device), self.patch.to(device), self.batch, weight)

    def of_images(self, keep: Tensor) -> Packed:
        """Return the patches of images where ``keep (batch,)`` bool is true; these images are renumbered from 0."""
        chosen = keep[self.image]
        renumbered = keep.long().cumsum(0)[self.image[chosen]] - 1
        weight = None if self.weight is None else self.weight[chosen]
        return Packed(self.pixels[chosen], renumbered, self.patch[chosen], int(keep.sum()), weight)


def gather(images: Tensor, choice: Tensor, grid: Grid) -> Packed:
    """Pack the chosen patches of images already in memory.

    Args:
        images: ``(B, C, H, W)``, any type.
        choice: ``(B, P)`` bool, row-major.

    Returns:
        Patches in the order of ``choice.nonzero()``.
    """
    blocks = _blocks(images, grid)
    image, patch = choice.nonzero(as_tuple=True)
    rows, cols = patch // grid.cols, patch % grid.cols
    return Packed(blocks[image, rows, cols], image, patch, len(images))


def scatter(packed: Packed, pixels: Tensor, canvas: Tensor, grid: Grid) -> Tensor:
    """Lay packed patches on a canvas; elsewhere the canvas keeps its own values.

    Args:
        packed: which image and patch each row of ``pixels`` belongs to.
        pixels: ``(N, C, p, q)``, the packed pixels or anything of their shape made from them.
        canvas: ``(B, C, H, W)``, not changed.

    Returns:
        ``(B, C, H, W)``.
    """
    height, width = canvas.shape[-2:]
    blocks = _blocks(canvas, grid).clone(memory_format=torch.contiguous_format)
    rows, cols = packed.patch // grid.cols, packed.patch % grid.cols
    blocks.index_put_((packed.image, rows, cols), pixels)
    b, gh, gw, c, p, q = blocks.shape
    laid = blocks.permute(0, 3, 1, 4, 2, 5).reshape(b, c, gh * p, gw * q)
    if (gh * p, gw * q) == (height, width):
        return laid
    ys, xs = (_real_positions(height, grid.rows, p), _real_positions(width, grid.cols, q))
    return laid[:, :, ys.to(laid.device)][:, :, :, xs.to(laid.device)]


def at_patches(packed: Packed, images: Tensor, grid: Grid) -> Tensor:
    """Return the pixels of ``images (B, C, H, W)`` at the place of each packed patch: ``(N, C, p, q)``."""
    return _blocks(images, grid)[packed.image, packed.patch // grid.cols, packed.patch % grid.cols]


def _blocks(images: Tensor, grid: Grid) -> Tensor:
    """Return ``(B, C, H, W)`` as ``(B, rows, cols, C, p, q)``: a view if the grid divides the image."""
    b, c, height, width = images.shape
    grid.check(height, width)
    p, q = patch_size(grid, height, width)
    if (p * grid.rows, q * grid.cols) != (height, width):
        padded = images.new_zeros(b, c, p * grid.rows, q * grid.cols)
        ys, xs = _real_positions(height, grid.rows, p), _real_positions(width, grid.cols, q)
        padded[:, :, ys[:, None], xs[None, :]] = images
        images = padded
    return images.view(b, c, grid.rows, p, grid.cols, q).permute(0, 2, 4, 1, 3, 5)


def _real_positions(length: int, parts: int, size: int) -> Tensor:
    """Return where each pixel of a side lies once every patch is padded to ``size`` pixels."""
    starts = edges(length, parts)
    return torch.cat([torch.arange(end - start) + i * size for i, (start, end) in enumerate(pairwise(starts))])
