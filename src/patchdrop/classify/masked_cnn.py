"""The paper's HR classifier: chosen patches on a canvas, one dense CNN.

Saves reads, not multiplications: the network runs over the whole canvas whatever was chosen.
Departure from the released code: patches are laid on the canvas, rather than the whole image multiplied by a
mask, so that no value of an unread pixel can reach the classifier.
"""

from __future__ import annotations

from torch import Tensor

from patchdrop.classify.high import HighClassifier, Spec
from patchdrop.networks.build import channels_last
from patchdrop.packed import Packed, at_patches, scatter


class MaskedCNN(HighClassifier):
    """The paper's classifier: maps packed HR patches (and, with ``fill="low"``, LR) to class logits ``(B, K)``.

    Unread patches hold the training set's mean colour (``fill="mean"``), or LR enlarged.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.size = spec.shape.high
        self.network = spec.backbone(spec.classes)

    def forward(self, packed: Packed, low: Tensor) -> Tensor:
        """Return class logits of packed patches of ``len(low)`` images; ``low (B, C, h, w)`` in 0..255."""
        logits: Tensor = self.network(channels_last(self.canvas(packed, low)))
        return logits

    def whole(self, high: Tensor, low: Tensor) -> Tensor:
        """Run the plain network."""
        logits: Tensor = self.network(channels_last(self.normalise(high)))
        return logits

    def canvas(self, packed: Packed, low: Tensor) -> Tensor:
        """Make the network's input: ``(B, C, H, W)`` float, normalised, 0 is the mean colour."""
        pixels = self.normalise(packed.pixels)
        empty = self.empty(low, self.size)
        if packed.weight is not None:
            unread = at_patches(packed, empty, self.grid)
            pixels = unread + packed.weight.view(-1, 1, 1, 1) * (pixels - unread)
        return scatter(packed, pixels, empty, self.grid)
