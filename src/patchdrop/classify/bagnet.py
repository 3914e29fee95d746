"""BagNet: a classifier that looks at one patch at a time, so that a dropped patch costs nothing.

After Brendel and Bethge 2019: features of small patches, averaged over an image, then a linear head. Departures:

* The patches are those of the grid, they do not overlap, and each one is padded by itself; so the network runs on the
  packed patches and its cost is proportional to their number.
* Any backbone does; its receptive field is cut off at the patch, not by 1 x 1 convolutions.
* Where the grid does not divide the image, smaller patches keep the zeros they are packed with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from patchdrop.classify.high import HighClassifier, Spec
from patchdrop.networks.build import channels_last
from patchdrop.packed import Packed


class BagNet(HighClassifier):
    """A BagNet: maps packed HR patches to class logits ``(B, K)``, without looking at LR.

    An image's features are the mean over its patches, weighted by ``packed.weight`` if that is set. An image without a
    patch has features of 0, so its logits are the head's bias.

    Args:
        spec: its network takes ``(N, C, p, q)``, a patch of a few pixels: ``resnet8`` to ``resnet32`` fit from 8 px on.
        positions: scale each patch's features by ``1 + e``, with e learnt for each place of the grid, from a start
            of 0. A product, because a sum would pass the mean and the linear head as a bias.
    """

    def __init__(self, spec: Spec, *, positions: bool = False) -> None:
        super().__init__(spec)
        self.network = spec.backbone(0)
        features = int(self.network.num_features)  # type: ignore[arg-type]
        self.positions = nn.Parameter(torch.zeros(self.grid.patches, features)) if positions else None
        self.head = nn.Linear(features, spec.classes)

    def forward(self, packed: Packed, low: Tensor) -> Tensor:
        """Return class logits of the packed patches of ``packed.batch`` images."""
        logits: Tensor = self.head(self.features(packed))
        return logits

    def features(self, packed: Packed) -> Tensor:
        """Return the mean features of each image: ``(B, F)``."""
        total = self.head.weight.new_zeros(packed.batch, self.head.in_features)
        if len(packed.image) == 0:
            return total
        found = self._of_patches(packed)
        weight = found.new_ones(len(found)) if packed.weight is None else packed.weight
        total = total.index_add(0, packed.image, (found * weight[:, None]).to(total.dtype))
        mass = total.new_zeros(packed.batch).index_add(0, packed.image, weight.to(total.dtype))
        return total / torch.where(mass > 0, mass, 1)[:, None]

    def _of_patches(self, packed: Packed) -> Tensor:
        """Return the features of each patch ``(N, F)``."""
        found: Tensor = self.network(channels_last(self.normalise(packed.pixels)))
        return found if self.positions is None else found * (1 + self.positions[packed.patch])
