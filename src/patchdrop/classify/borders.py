"""Convolutions on packed patches that look across a patch's border if the neighbour was read.

A patch that is convolved by itself sees zeros around it, so a network of such layers differs from the network on whole
images. Here the pixels just outside a patch come from the packed neighbour, and are zeros only where that one was not
read. With all patches read the result is then that of the whole image, batch-norm statistics included (in the manner
of Ren et al. 2018, *SBNet*, whose blocks overlap in the input instead); multiply-adds are those of the patches alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.grid import Grid
from patchdrop.packed import Packed


class Neighbours:
    """A table of which packed patches lie next to each other in their image."""

    def __init__(self, packed: Packed, grid: Grid) -> None:
        device = packed.image.device
        row, col = packed.patch // grid.cols, packed.patch % grid.cols
        table = torch.full((packed.batch, grid.rows + 2, grid.cols + 2), -1, device=device)
        table[packed.image, row + 1, col + 1] = torch.arange(row.shape[0], device=device)
        around = torch.arange(3, device=device)
        self.around = table[
            packed.image[:, None, None], row[:, None, None] + around[:, None], col[:, None, None] + around
        ]
        """``(N, 3, 3)``: the packed patch in each direction, -1 where there is none."""
        self.weight = packed.weight
        self._places: dict[tuple[int, int, int], _Places] = {}

    def pad(self, features: Tensor, width: int) -> Tensor:
        """Pad ``(N, F, p, q)`` by ``width`` on every side with the neighbours' pixels, zeros for unread ones.

        Args:
            width: at most p and q.
        """
        n, channels, p, q = features.shape
        if torch.compiler.is_exporting():
            return self._pad_in_a_graph(features, width)
        places = self._at(p, q, width)
        flat = _rows(F.pad(features, (width,) * 4))
        taken = _rows(features).index_select(0, places.source)
        if self.weight is not None:
            taken = taken * self.weight[places.owner, None]
        return (
            flat.index_copy_(0, places.target, taken.to(flat.dtype))
            .view(n, p + 2 * width, q + 2 * width, channels)
            .permute(0, 3, 1, 2)
        )

    def _pad_in_a_graph(self, features: Tensor, width: int) -> Tensor:
        """Do the same without a size that depends on data: a row of zeros stands for all that was not read."""
        n, channels, p, q = features.shape
        direction, source = _padded(p, q, width)
        owner = self.around.flatten(1)[:, direction]
        rows = torch.cat([_rows(features), features.new_zeros(1, channels)])
        taken = rows[torch.where(owner >= 0, owner * (p * q) + source, n * p * q)]
        return taken.view(n, p + 2 * width, q + 2 * width, channels).permute(0, 3, 1, 2)

    def _at(self, p: int, q: int, width: int) -> _Places:
        if (p, q, width) not in self._places:
            direction, source, target = (part.to(self.around.device) for part in _ring(p, q, width))
            owner = self.around.flatten(1)[:, direction]
            patch, place = (owner >= 0).nonzero(as_tuple=True)
            owner = owner[patch, place]
            size = (p + 2 * width) * (q + 2 * width)
            self._places[p, q, width] = _Places(owner, owner * (p * q) + source[place], patch * size + target[place])
        return self._places[p, q, width]


class _Places(NamedTuple):
    """Indices of pixels to copy, as rows of channels."""

    owner: Tensor
    """Packed patch that each pixel comes from, ``(M,)``."""
    source: Tensor
    target: Tensor


def _padded(p: int, q: int, width: int) -> tuple[Tensor, Tensor]:
    """Return each padded pixel's direction 0..8, 4 for the patch itself, and its place in the patch that lies there."""
    y, x = torch.meshgrid(torch.arange(-width, p + width), torch.arange(-width, q + width), indexing="ij")
    direction = (torch.div(y, p, rounding_mode="floor") + 1) * 3 + torch.div(x, q, rounding_mode="floor") + 1
    return direction.flatten(), ((y % p) * q + x % q).flatten()


@lru_cache
def _ring(p: int, q: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for pixels around a patch: direction, place in that neighbour, place in the padded patch."""
    direction, source = _padded(p, q, width)
    target = (direction != 4).nonzero().flatten()
    return direction[target], source[target], target


def _rows(features: Tensor) -> Tensor:
    """View ``(N, F, p, q)``, in channels_last order, as ``(N p q, F)``."""
    return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])


_current: ContextVar[Neighbours | None] = ContextVar("neighbours", default=None)


@contextmanager
def across_borders(neighbours: Neighbours) -> Iterator[None]:
    """Let `BorderConv2d` and `BorderMaxPool2d` take packed patches in this block; elsewhere they are plain layers."""
    token = _current.set(neighbours)
    try:
        yield
    finally:
        _current.reset(token)


class BorderConv2d(nn.Conv2d):
    """A convolution that pads packed patches by their neighbours."""

    @classmethod
    def of(cls, layer: nn.Conv2d) -> BorderConv2d:
        """Build one with the weights of another convolution, not copied."""
        made = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            layer.bias is not None,
            device="meta",
        )
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Convolve packed patches, or images."""
        neighbours = _current.get()
        if neighbours is None:
            return super().forward(input)
        padded = neighbours.pad(input, int(self.padding[0]))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class BorderMaxPool2d(nn.MaxPool2d):
    """A max pool, of values that are not negative, that pads packed patches by their neighbours."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool packed patches, or images."""
        neighbours = _current.get()
        if neighbours is None:
            plain: Tensor = super().forward(input)
            return plain
        assert isinstance(self.padding, int)
        pooled: Tensor = F.max_pool2d(neighbours.pad(input, self.padding), self.kernel_size, self.stride)
        return pooled


def see_across(network: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Replace the padding layers in ``layers``, at any depth, by layers that see across borders."""
    inside = {part for layer in layers for part in layer.modules()}
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if child in inside and isinstance(child, nn.Conv2d) and child.padding != (0, 0):
                setattr(parent, name, BorderConv2d.of(child))
            elif child in inside and isinstance(child, nn.MaxPool2d) and child.padding != 0:
                setattr(parent, name, BorderMaxPool2d(child.kernel_size, child.stride, child.padding))
