"""Attend over the patches of each image, when images have different numbers of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from patchdrop.packed import Packed

TINY = 1e-30


def by_count(packed: Packed) -> Iterator[tuple[Tensor, Tensor]]:
    """Group images with equally many patches, so that their sets stack without padding.

    Yields:
        Images ``(b,)`` int64, and their rows in ``packed`` ``(b, S)``, by rising S, from 1 on.
    """
    counts = packed.counts
    starts = counts.cumsum(0) - counts
    for count in torch.bincount(counts).nonzero().flatten().tolist():
        if count:
            images = (counts == count).nonzero(as_tuple=True)[0]
            yield images, starts[images, None] + torch.arange(count, device=images.device)


def key_bias(weight: Tensor) -> Tensor:
    """Return what to add to attention's logits so that a key counts ``weight`` times: ``(b, L)`` to ``(b, 1, 1, L)``.

    A weight of 0 is `TINY` here; its gradient is that of the weighted softmax nevertheless.
    """
    return (weight + TINY).log()[:, None, None]


def own_image(image: Tensor, key: Tensor | None = None) -> Tensor:
    """Return what to add to attention's logits in one sequence of all images' tokens, so each sees its own image's.

    The form for a graph, which cannot take sizes from data. Attention grows with the square of all images' tokens here.

    Args:
        image: each token's image ``(L,)``.
        key: ``(L,)`` bool, whether a token is attended to; None is all of them.

    Returns:
        ``(1, 1, L, L)``.
    """
    seen = image[:, None] == image
    if key is not None:
        seen = seen & key
    return torch.where(seen, 0.0, -torch.inf)[None, None]
