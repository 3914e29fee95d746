"""The policy network: LR image to one logit a patch.

Beyond the paper: the default head reads a patch's logit from the features at the patch's own place
(and their mean), not from the mean alone, so that "where" need not be learnt anew for every patch.
``head="global"`` is the paper's.

``head="certainty"`` adds to each logit what says *when*: the network keeps its class outputs, and a patch is read with
the probability that its best class is wrong by its own word, from where the weight of that word is learnt. Where the
network starts as LR-CNN the policy starts at "read what LR leaves open".
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
        classes: int = 0,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.enlarge = enlarge
        self.spatial = head != "global"
        self.normalise = normalise
        self.doubt = nn.Parameter(torch.ones(())) if head == "certainty" else None
        outputs = {"certainty": classes, "spatial": 0, "global": grid.patches}[head]
        self.network = build(network, outputs, channels, pretrained)
        if self.spatial:
            self.head = nn.Linear(2 * int(self.network.num_features), 1)  # type: ignore[arg-type]
            # Start at a probability of 0.5 a patch, whatever the features are.
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, low: Tensor) -> Tensor:
        """Patch logits ``(B, P)`` of LR images ``(B, C, h, w)``; float32, as probabilities near 0 and 1 need."""
        if not self.spatial:
            logits: Tensor = self.network(enlarged(self.normalise(low), self.enlarge))
            return logits.float()
        return self.decide(self.look(low))

    def look(self, low: Tensor) -> Tensor:
        """Feature map ``(B, F, h', w')`` of LR images, for heads that read a place or a class from it."""
        return feature_map(self.network, enlarged(self.normalise(low), self.enlarge))

    def opinion(self, features: Tensor) -> Tensor:
        """Class logits ``(B, K)`` from what `look` saw, by the network's own head."""
        logits: Tensor = self.network.forward_head(features)  # type: ignore[operator]
        return logits

    def decide(self, features: Tensor, opinion: Tensor | None = None) -> Tensor:
        """Patch logits ``(B, P)`` from what `look` saw and, for ``certainty``, what `opinion` says of it."""
        cells = F.adaptive_avg_pool2d(features, (self.grid.rows, self.grid.cols)).flatten(2)
        whole = cells.mean(2, keepdim=True).expand_as(cells)
        patch_logits: Tensor = self.head(torch.cat([cells, whole], 1).transpose(1, 2)).squeeze(2)
        if self.doubt is not None:
            patch_logits = patch_logits + self.doubt * doubts(self.opinion(features) if opinion is None else opinion)
        return patch_logits.float()


def doubts(class_logits: Tensor) -> Tensor:
    """Log odds that the best class is wrong, by the class probabilities themselves: ``(B, K)`` to ``(B, 1)``.

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
    """``(B, C, h, w)`` float, enlarged by a whole factor (bilinear), channels last."""
    if factor > 1:
        images = F.interpolate(images, scale_factor=factor, mode="bilinear", align_corners=False)
    return channels_last(images)
