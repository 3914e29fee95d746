"""Rules that replace the policy: plain strategies for data on which no learnt policy beats them.

| rule | when | where |
|---|---|---|
| ``cascade`` | LR-CNN is uncertain | everywhere |
| ``activation map`` | LR-CNN is uncertain | where LR-CNN sees its class |
| ``detail`` | always | where LR varies most |
| ``fixed mask`` | always | the same patches in every image |

How uncertain, how many and which patches is set on validation images. As with a policy, patches with a logit of 0 or
more are read, and other thresholds read more or less.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from patchdrop.policy.network import uncertainty
from patchdrop.policy.ranking import in_order

RULES = ("cascade", "activation map", "detail", "fixed mask")
TIE = 1e-4
NEVER = -1e4
"""Logit, before its rank is subtracted, of patches that a rule reads after all others."""


class Rule(nn.Module):
    """A rule that replaces the policy.

    Attributes:
        places: worth of each patch, the same in every image, for ``fixed mask``: ``(P,)``.
        cut: log odds of LR-CNN being wrong above which an image is read, for rules that decide when.
        each: number of patches read of an image that is read.
    """

    places: Tensor
    cut: Tensor
    each: Tensor

    def __init__(self, name: str, patches: int) -> None:
        super().__init__()
        self.name = name
        self.asks_when = name in ("cascade", "activation map")
        self.register_buffer("places", torch.zeros(patches))
        self.register_buffer("cut", torch.zeros(()))
        self.register_buffer("each", torch.tensor(float(patches)))

    def forward(self, low: Tensor, low_logits: Tensor, see: Callable[[Tensor], Tensor]) -> Tensor:
        """Return patch logits ``(B, P)``.

        Args:
            low: LR ``(B, C, h, w)``.
            low_logits: LR-CNN's class logits ``(B, K)``.
            see: maps LR to the scores ``(B, P)`` by which ``activation map`` or ``detail`` ranks.
        """
        blind = self.name in ("cascade", "fixed mask")
        worth = self.places.expand(len(low), -1) if blind else see(low)
        rank = in_order(worth).argsort(1).float()
        if not self.asks_when:
            return self.each - 0.5 - rank
        wanted = uncertainty(low_logits.float()) - self.cut - TIE * rank
        return torch.where(rank < self.each, wanted, NEVER - rank)
