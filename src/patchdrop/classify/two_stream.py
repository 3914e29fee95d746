"""Run the HR classifier on the chosen patches and the LR classifier on LR; fuse their logits with weights set by S.

Two identities hold to the bit: with no patch chosen the result is the LR classifier's, and the HR network does not
run; with every patch chosen it is the HR classifier's, unless the fusion is ``capped``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.classify.high import HighClassifier, SparseClassifier
from patchdrop.classify.low import LowCNN
from patchdrop.packed import Packed

CAP = 0.6
BELIEF = 4.0
"""Weight, in images, of the fusion weights as they were before `TwoStream.fit`."""


class Streams(NamedTuple):
    """The outputs of both streams for B images, Z of which have patches."""

    fused: Tensor
    """Class logits ``(B, K)``."""
    high: Tensor
    """Class logits of the HR stream alone ``(Z, K)``."""
    zoomed: Tensor
    """Which images have patches: ``(B,)`` bool, Z of them."""


class TwoStream(nn.Module):
    """A classifier that fuses class logits: ``w HR + (1 - w) LR``.

    ``fusion="share"``: w = S/P (the paper). ``fusion="learned"``: w = 1 - (1 - S/P)^k with k > 0 learned from a start
    of 3, so that a few patches can move the prediction; k = 1 is the paper's. ``fusion="capped"``: w = c (1 - (1 -
    S/P)^k) with 0 < c < 1 learned as well, from a start of `CAP`: LR-CNN counts even with every patch read, as two
    classifiers together are right more often than the better one.
    """

    def __init__(self, high: HighClassifier, low: LowCNN, fusion: str = "share") -> None:
        super().__init__()
        self.high = high
        self.low = low
        self.log_power = nn.Parameter(torch.tensor(3.0).log()) if fusion in ("learned", "capped") else None
        self.cap = nn.Parameter(torch.tensor(CAP).logit()) if fusion == "capped" else None

    def forward(self, packed: Packed, low: Tensor) -> Tensor:
        """Return class logits ``(B, K)``; images that keep no patch never reach the HR network."""
        return self.join(self.low(low), packed, low)

    def join(self, logits: Tensor, packed: Packed, low: Tensor) -> Tensor:
        """Do the same from class logits ``(B, K)`` of LR-CNN."""
        if torch.compiler.is_exporting():
            return self._in_a_graph(packed, low, logits)
        return self.apart(logits, packed, low).fused

    def apart(self, logits: Tensor, packed: Packed, low: Tensor) -> Streams:
        """Do as `join`, and return the HR stream's own logits too."""
        zoomed = packed.counts > 0
        if not bool(zoomed.any()):
            return Streams(logits, logits[:0], zoomed)
        weight = self.weight(packed)[zoomed].unsqueeze(1)
        seen = packed if bool(zoomed.all()) else packed.of_images(zoomed)
        high: Tensor = self.high(seen, low[zoomed])
        fused: Tensor = weight * high + (1 - weight) * logits[zoomed]
        if not bool(zoomed.all()):
            fused = logits.index_put((zoomed.nonzero(as_tuple=True)[0],), fused.to(logits.dtype))
        return Streams(fused, high, zoomed)

    def _in_a_graph(self, packed: Packed, low: Tensor, logits: Tensor) -> Tensor:
        """Do the same for `torch.export`, which cannot leave images out: all of them reach the HR network, or none."""

        def zoom() -> Tensor:
            weight = self.weight(packed).unsqueeze(1)
            high: Tensor = self.high(packed, low)
            return weight * high + (1 - weight) * logits

        if isinstance(self.high, SparseClassifier):  # it has that branch itself, and nested branches do not export
            return zoom()
        fused: Tensor = torch.cond((packed.counts > 0).any(), zoom, lambda: logits.clone())
        return fused

    def weight(self, packed: Packed) -> Tensor:
        """Return w of each image ``(B,)``."""
        patches = self.high.grid.patches
        if packed.weight is None:
            return self.weight_at(packed.counts / patches)
        share = torch.zeros(packed.batch, device=packed.weight.device)
        return self.weight_at(share.index_add(0, packed.image, packed.weight) / patches)

    def weight_at(self, share: Tensor) -> Tensor:
        """Return w in 0..1 for a share S/P of patches read: exactly 0 at S = 0, and at S = P exactly 1 or the cap."""
        if self.log_power is None:
            return share
        # The clamp keeps the gradient of 0^k finite; `where` restores the identity at S = P exactly.
        share = share.to(self.log_power.device)
        unread = (1 - share).clamp(min=1e-6)
        weight = torch.where(share >= 1, torch.ones_like(share), 1 - unread ** self.log_power.exp())
        return weight if self.cap is None else self.cap.sigmoid() * weight

    @property
    def learnable(self) -> list[nn.Parameter]:
        """The parameters of the weights: k and c, as far as they exist."""
        return [p for p in (self.log_power, self.cap) if p is not None]

    def fit(self, share: Tensor, high: Tensor, low: Tensor, target: Tensor) -> None:
        """Set k and c by the classes of images that no network was trained on.

        By the largest likelihood, of fused logits that all have one temperature, against a penalty worth `BELIEF`
        images. Training images would not do: LR-CNN remembers them, and its logits are worth less on others.

        Args:
            share: S/P of each of M numbers of patches, above 0: ``(M,)``.
            high: class logits of the HR stream ``(n, M, K)``.
            low: class logits of LR-CNN ``(n, K)``.
            target: classes ``(n,)``.
        """
        learnable = self.learnable
        if not learnable or not len(target):
            return
        before = [p.detach().clone() for p in learnable]
        heat = torch.zeros((), device=high.device, requires_grad=True)
        high, low, share = high.float(), low.float().unsqueeze(1), share.to(high)
        classes = target.unsqueeze(1).expand(-1, len(share)).flatten()
        search = torch.optim.LBFGS([*learnable, heat], max_iter=50, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            search.zero_grad()
            weight = self.weight_at(share).unsqueeze(1)
            fused = (weight * high + (1 - weight) * low) * heat.exp()
            wrong = F.cross_entropy(fused.flatten(0, 1), classes, reduction="sum") / len(share)
            moved = torch.stack([(p - b).square() for p, b in zip(learnable, before, strict=True)]).sum()
            value: Tensor = wrong + BELIEF * (moved + heat.square()) / 2
            value.backward()  # type: ignore[no-untyped-call]
            return value

        asked = [p.requires_grad for p in learnable]
        for parameter in learnable:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            search.step(loss)  # type: ignore[no-untyped-call]
        for parameter, before_fit in zip(learnable, asked, strict=True):
            parameter.requires_grad_(before_fit)
            parameter.grad = None
