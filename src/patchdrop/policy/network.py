"""The policy network: maps an LR image to one logit per patch.

Beyond the paper: the default head computes a patch's logit from the features at the patch's own place (and their mean),
not from the mean alone, so that "where" need not be learnt anew for every patch. Where the last feature map is coarser
than the grid, patches would share their features, and so their logit; the head then also reads maps of earlier stages,
from the last one on that has a place for every patch. ``head="global"`` is the paper's.

``head="certainty"`` adds to each logit a term that says *when* to read: the network keeps its class outputs, and at the
start a patch is read with the probability, by those outputs, that the best class is wrong; the term's weight is learnt.
A policy whose network starts as LR-CNN thus starts at "read what LR leaves open".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.errors import UsageError
from patchdrop.grid import Grid
from patchdrop.networks.build import Normalise, build, channels_last, feature_map, feature_maps


class Policy(nn.Module):
    """A policy network: ``(B, C, h, w)`` LR pixels 0..255 to ``(B, P)`` patch logits, row-major.

    Raises:
        UsageError: the head reads places, and no feature map of the network has one for every patch.
    """

    def __init__(
        self,
        network: str,
        grid: Grid,
        size: tuple[int, int],
        normalise: Normalise,
        *,
        channels: int = 3,
        enlarge: int = 1,
        head: str = "spatial",
        classes: int = 0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.enlarge = enlarge
        self.spatial = head != "global"
        self.normalise = normalise
        self.doubt = nn.Parameter(torch.ones(())) if head == "certainty" else None
        outputs = grid.patches if head == "global" else classes
        self.network = build(network, outputs, channels, pretrained)
        if self.spatial:
            shapes = _shapes(self.network, channels, (size[0] * enlarge, size[1] * enlarge))
            self.maps_read = _maps_needed(shapes, grid, network, size)
            features = [shape[0] for shape in shapes[-self.maps_read :]]
            self.features = sum(features)  # per place, in `places`
            self.head = nn.Linear(self.features + features[-1], 1)
            # Start at a probability of 0.5 a patch, whatever the features are.
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, low: Tensor) -> Tensor:
        """Return patch logits ``(B, P)`` of LR images ``(B, C, h, w)``; float32, as probabilities near 0 and 1 need."""
        if not self.spatial:
            logits: Tensor = self.network(enlarged(self.normalise(low), self.enlarge))
            return logits.float()
        maps = self.look(low)
        return self.decide(self.places(maps), None if self.doubt is None else self.low_logits(maps))

    def look(self, low: Tensor) -> list[Tensor]:
        """Return feature maps ``(B, F, h', w')`` of LR images, from the first that the head reads to the last."""
        images = enlarged(self.normalise(low), self.enlarge)
        if self.maps_read == 1:
            return [feature_map(self.network, images)]
        return feature_maps(self.network, images)[-self.maps_read :]

    def low_logits(self, maps: list[Tensor]) -> Tensor:
        """Return class logits ``(B, K)`` from the maps of `look`, by the network's own head."""
        logits: Tensor = self.network.forward_head(maps[-1])  # type: ignore[operator]
        return logits

    def places(self, maps: list[Tensor]) -> Tensor:
        """Pool the maps of `look` at the place of each patch: ``(B, P, F)``, with the last map's features last."""
        size = (self.grid.rows, self.grid.cols)
        return torch.cat([F.adaptive_avg_pool2d(found, size).flatten(2) for found in maps], 1).transpose(1, 2)

    def decide(self, places: Tensor, low_logits: Tensor | None) -> Tensor:
        """Return patch logits ``(B, P)`` from `places` and, for ``certainty``, `low_logits`."""
        last = places[..., self.features - self.head.in_features :]
        whole = last.mean(1, keepdim=True).expand_as(last)
        patch_logits: Tensor = self.head(torch.cat([places, whole], 2)).squeeze(2)
        if self.doubt is not None:
            assert low_logits is not None
            patch_logits = patch_logits + self.doubt * uncertainty(low_logits)
        return patch_logits.float()


def _shapes(network: nn.Module, channels: int, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Return (features, height, width) of every feature map for images of a size, finest first."""
    training = network.training
    with torch.no_grad():
        maps = feature_maps(network.eval(), torch.zeros(1, channels, *size))
    network.train(training)
    return [tuple(found.shape[1:]) for found in maps]


def _maps_needed(shapes: list[tuple[int, ...]], grid: Grid, network: str, size: tuple[int, int]) -> int:
    """Count the last maps that a head reads: back to the last one that is at least as fine as the grid."""
    for needed, (_, height, width) in enumerate(reversed(shapes), 1):
        if height >= grid.rows and width >= grid.cols:
            return needed
    finest = " x ".join(str(side) for side in shapes[0][1:])
    raise UsageError(
        f"policy_network {network}: its finest feature map of an LR image of {size[0]} x {size[1]} px is {finest}, too "
        f"coarse for a grid of {grid.rows} x {grid.cols}; use a higher --low-enlarge, a larger LR size, or "
        "--policy-head global"
    )


def uncertainty(class_logits: Tensor) -> Tensor:
    """Return the log odds that the best class is wrong, by the class probabilities: ``(B, K)`` to ``(B, 1)``.

    A single class cannot be wrong; its log odds have no finite value, and 0 leaves all to the rest of the head.
    """
    if class_logits.shape[1] == 1:
        return torch.zeros_like(class_logits)
    best, place = class_logits.max(1, keepdim=True)
    others = class_logits.masked_fill(
        torch.zeros_like(class_logits, dtype=torch.bool).scatter(1, place, True), -torch.inf
    )
    return others.logsumexp(1, keepdim=True) - best


def enlarged(images: Tensor, factor: int) -> Tensor:
    """Enlarge ``(B, C, h, w)`` float by a whole factor (bilinear); the result is channels last."""
    if factor > 1:
        images = F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)
    return channels_last(images)
