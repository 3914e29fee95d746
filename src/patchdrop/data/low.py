"""Make LR images by area averaging, as an overview or a coarser sensor gives them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def area_average(high: Tensor, size: tuple[int, int]) -> Tensor:
    """Average ``(B, C, H, W)`` uint8 to ``(B, C, h, w)`` uint8: an LR pixel is the mean of the HR pixels it covers."""
    return F.adaptive_avg_pool2d(high.float(), size).round().to(torch.uint8)
