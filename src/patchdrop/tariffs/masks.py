"""Price the chosen patches of one image, a mask, under a tariff, for operating points.

An image is an order of its own, neighbours unite, and minima hold as in `patchdrop.tariffs.areas`. So a mask's price is
no sum over patches: the second patch of a minimum area is free, and one far away may cost as much as all between. In a
scene, where cells are ordered together, minima weigh less.

Bytes are those of the patches' pixels, one a channel, uncompressed, and each patch is a request.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from patchdrop.errors import UsageError
from patchdrop.grid import Grid, boxes
from patchdrop.tariffs.areas import Ground, billed_km2
from patchdrop.tariffs.tariff import Tariff
from patchdrop.transport.ledger import Cost


class MaskPrice:
    """A price list of masks; each mask is priced once.

    Args:
        size: height and width of an HR image in pixels.
        pixel_metres: side of an HR pixel on the ground; needed if imagery is sold by area.

    Raises:
        UsageError: the side is needed and not given, or all patches together cost nothing.
    """

    def __init__(
        self, tariff: Tariff, grid: Grid, size: tuple[int, int], channels: int, pixel_metres: float | None = None
    ) -> None:
        if tariff.sells_areas and not pixel_metres:
            raise UsageError(
                "pixel_metres: a tariff with a price per km2 needs the metres on the ground of an HR pixel; "
                "give --pixel-metres"
            )
        side = pixel_metres or 0.0
        self.tariff, self._size, self._channels = tariff, size, channels
        self._ground = Ground(side, side, side * side / 1e6)
        self._boxes = boxes(grid, *size)
        self._known: dict[bytes, float] = {}
        if not self._price(range(grid.patches)) > 0:
            raise UsageError("tariff: all patches of an image cost nothing; give prices")

    def money(self, choice: Tensor) -> Tensor:
        """Price masks ``(N, P)`` bool: ``(N,)`` float64, in the tariff's currency."""
        masks = choice.cpu().numpy().astype(bool)
        keys = [row.tobytes() for row in np.packbits(masks, axis=1)]
        for key, mask in zip(keys, masks, strict=True):
            if key not in self._known:
                self._known[key] = self._price(np.flatnonzero(mask).tolist())
        return torch.tensor([self._known[key] for key in keys], dtype=torch.float64)

    def _price(self, patches: list[int] | range) -> float:
        tariff = self.tariff
        chosen = [self._boxes[patch] for patch in patches]
        pixels = sum((bottom - top) * (right - left) for top, left, bottom, right in chosen)
        money = tariff.storage(Cost(len(chosen), pixels * self._channels))
        if tariff.sells_areas:
            money += tariff.price_of(billed_km2(chosen, self._size, self._ground, tariff))
        return money + (tariff.per_scene or 0.0 if chosen else 0.0)
