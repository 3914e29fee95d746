"""The policy network: LR image to one logit a patch.

Beyond the paper: the default head reads a patch's logit from the features at the patch's own place
(and their mean), not from the mean alone, so that "where" need not be learnt anew for every patch.
``head="global"`` is the paper's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.grid import Grid
from patchdrop.networks import Normalise, build, channels_last, feature_map


class Policy(nn.Module):
    """``(B, C, h, w)`` LR pixels 0..255 to ``(B, P)`` patch logits, row-major."""

    def __init__(
        self,
        network: str,
        grid: Grid,
        normalise: Normalise,
        *,
        channels: int = 3,
        enlarge: int = 1,
        head: str = "spatial",
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.enlarge = enlarge
        self.spatial = head == "spatial"
        self.normalise = normalise
        self.network = build(network, 0 if self.spatial else grid.patches, channels, pretrained)
        if self.spatial:
            self.head = nn.Linear(2 * int(self.network.num_features), 1)  # type: ignore[arg-type]
            # Start at a probability of 0.5 a patch, whatever the features are.
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, low: Tensor) -> Tensor:
        """Patch logits ``(B, P)`` of LR images ``(B, C, h, w)``."""
        images = enlarged(self.normalise(low), self.enlarge)
        if not self.spatial:
            logits: Tensor = self.network(images)
            return logits
        features = feature_map(self.network, images)
        cells = F.adaptive_avg_pool2d(features, (self.grid.rows, self.grid.cols)).flatten(2)
        whole = cells.mean(2, keepdim=True).expand_as(cells)
        patch_logits: Tensor = self.head(torch.cat([cells, whole], 1).transpose(1, 2))
        return patch_logits.squeeze(2)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """``(B, C, h, w)`` float, enlarged by a whole factor (bilinear), channels last."""
    if factor > 1:
        images = F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)
    return channels_last(images)
