"""LR-CNN: the classifier that sees the LR image alone."""

from __future__ import annotations

from torch import Tensor, nn

from patchdrop.networks.build import Normalise, build
from patchdrop.policy.network import enlarged


class LowCNN(nn.Module):
    """LR-CNN: maps LR ``(B, C, h, w)``, pixels 0..255, to class logits ``(B, K)``."""

    def __init__(
        self,
        network: str,
        classes: int,
        normalise: Normalise,
        *,
        channels: int = 3,
        enlarge: int = 1,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.normalise = normalise
        self.enlarge = enlarge
        self.network = build(network, classes, channels, pretrained)

    def forward(self, low: Tensor) -> Tensor:
        """Return class logits ``(B, K)``."""
        logits: Tensor = self.network(enlarged(self.normalise(low), self.enlarge))
        return logits
