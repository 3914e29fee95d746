"""Turn LR into features that fill the places of patches that were not read."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.networks.build import channels_last

WIDTH = 32


class LowEntry(nn.Module):
    """A small stem that maps normalised LR ``(B, C, h, w)`` to features ``(B, F, *size)``, all 0 at the start.

    It has a convolution at LR's size, an average over area, a convolution at the features' size, and a projection. It
    starts at 0 because it joins a network that was trained without it.
    """

    def __init__(self, channels: int, features: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.at_low = _layer(channels, WIDTH)
        self.at_size = _layer(WIDTH, 2 * WIDTH)
        self.project = nn.Conv2d(2 * WIDTH, features, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, low: Tensor) -> Tensor:
        """Return the features."""
        averaged = F.adaptive_avg_pool2d(self.at_low(channels_last(low)), self.size)
        found: Tensor = self.project(self.at_size(averaged))
        return found


def _layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
