"""The paper's HR classifier: chosen patches on a canvas, one dense CNN.

Saves reads, not multiplications: the network runs over the whole canvas whatever was chosen.
Departure from the released code: patches are laid on the canvas, rather than the whole image multiplied by a
mask, so that no value of an unread pixel can reach the classifier.
"""

from __future__ import annotations

from torch import Tensor

from patchdrop.classify.high import HighClassifier
from patchdrop.grid import Grid
from patchdrop.networks.build import Normalise, build, channels_last
from patchdrop.packed import Packed, at_patches, scatter


class MaskedCNN(HighClassifier):
    """The paper's classifier: maps packed HR patches (and, with ``fill="low"``, LR) to class logits ``(B, K)``.

    Args:
        size: HR (height, width) in pixels.
        fill: what unread patches hold: ``mean``, the training set's mean colour, or ``low``, LR enlarged.
    """

    def __init__(
        self,
        network: str,
        classes: int,
        grid: Grid,
        size: tuple[int, int],
        normalise: Normalise,
        *,
        channels: int = 3,
        fill: str = "mean",
        pretrained: bool = False,
    ) -> None:
        super().__init__(grid, normalise, fill)
        self.size = size
        self.network = build(network, classes, channels, pretrained)

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
