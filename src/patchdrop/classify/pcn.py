"""PCN: an LR network whose layers share part of their filters with an HR network (Wang et al. 2016).

The shared filters have to serve HR images too, which keeps them from fitting what is particular to LR; the LR
network's own filters absorb the mismatch. Both are trained together, and the LR network alone is used afterwards.

Departures (from memory of the paper):

* Both see images of one size: LR enlarged, HR averaged to that size, which is HR itself if the factor is HR / LR.
  Filters tied across two scales would look for one pattern at two sizes.
* Each network keeps its batch-norm statistics and its head. A head has a channel for each class, not for each feature.
* There is no super-resolution as a first step, and no matching of features, only the coupling.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call

from patchdrop.classify.low import LowCNN
from patchdrop.data.low import area_average
from patchdrop.errors import UsageError
from patchdrop.networks.build import Normalise


class PartiallyCoupled(nn.Module):
    """An LR network coupled to ``high``: maps LR ``(B, C, h, w)``, pixels 0..255, to class logits ``(B, K)``.

    Args:
        normalise: of LR.
        high_normalise: of HR.
        enlarge: factor (2 or more) by which LR is enlarged; with 1, HR averaged to that size would be LR.
        share: share 0..1 of each layer's output channels that have the HR network's weights.
    """

    def __init__(
        self,
        network: str,
        classes: int,
        normalise: Normalise,
        high_normalise: Normalise,
        *,
        channels: int = 3,
        enlarge: int = 2,
        share: float = 0.5,
        pretrained: bool = False,
    ) -> None:
        if enlarge < 2:
            raise UsageError(f"PCN enlarges LR by a factor of 2 or more, not {enlarge}: use a larger --low-enlarge")
        super().__init__()
        self.share = share
        self.high = LowCNN(network, classes, high_normalise, channels=channels, pretrained=pretrained)
        # Its first channels are never used; they are kept so that a layer's own part has the layer's name and shape.
        self.low = LowCNN(network, classes, normalise, channels=channels, enlarge=enlarge, pretrained=pretrained)
        self.head = [f"{name}." for name, part in self.low.named_modules() if isinstance(part, nn.Linear)][-1]

    def forward(self, low: Tensor) -> Tensor:
        """Return class logits ``(B, K)``."""
        logits: Tensor = functional_call(self.low, self.coupled(), (low,))
        return logits

    def high_logits(self, high: Tensor, low: Tensor) -> Tensor:
        """Average HR ``(B, C, H, W)`` uint8 to the enlarged LR's size; return the HR network's logits ``(B, K)``."""
        height, width = low.shape[-2] * self.low.enlarge, low.shape[-1] * self.low.enlarge
        logits: Tensor = self.high(area_average(high, (height, width)))
        return logits

    def coupled(self) -> dict[str, Tensor]:
        """Return the LR network's weights by name: in each layer the HR network's first channels, then its own."""
        theirs = dict(self.high.named_parameters())
        weights = {}
        for name, own in self.low.named_parameters():
            shared = 0 if name.startswith(self.head) else round(self.share * len(own))
            weights[name] = torch.cat([theirs[name][:shared], own[shared:]])
        return weights

    def export(self) -> LowCNN:
        """Return the LR network by itself, with the coupled weights copied in."""
        alone = copy.deepcopy(self.low)
        alone.load_state_dict({**alone.state_dict(), **self.coupled()})
        return alone
