"""Read this first: one image's way through PatchDrop, on one screen.

    look -> decide -> choose -> read -> classify

Training and serving both call `play`; they differ only in the reader they pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from patchdrop.packed import Packed
from patchdrop.policy.choice import Choose
from patchdrop.read.source import Reader

Classify = Callable[[Packed, Tensor], Tensor]


class Look(NamedTuple):
    """The outcome of looking at LR images: patch logits, chances, and the classifier to use."""

    scores: Tensor
    """Patch logits of the policy, ``(B, P)``; a patch is to be read if its logit is 0 or more."""
    chances: Tensor | None
    """Chance of being right after the first k patches in the order of the scores, ``(B, P + 1)``; None if the policy
    predicts no chances."""
    classify: Classify
    """The classifier; it may reuse what was computed from these images."""


class Episode(NamedTuple):
    """The results of each step for one batch."""

    scores: Tensor
    """As in `Look`."""
    chances: Tensor | None
    """As in `Look`."""
    choice: Tensor
    """Patches read, ``(B, P)`` bool."""
    packed: Packed
    """Pixels of the patches read."""
    logits: Tensor
    """Class logits, ``(B, K)``."""


class PatchDrop(nn.Module):
    """The model of one stage: a policy, and the classifier that uses what the policy chose to read."""

    def __init__(self, policy: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.classifier = classifier

    def look(self, low: Tensor) -> Look:
        """Return patch logits and classifier for LR images ``(B, C, h, w)``, pixels 0..255."""
        return Look(self.policy(low), None, self.classifier)

    def forward(self, low: Tensor, choose: Choose, read: Reader) -> Episode:
        """Run `play` with this policy and this classifier."""
        return play(self.look, choose, read, low)


def play(look: Callable[[Tensor], Look], choose: Choose, read: Reader, low: Tensor) -> Episode:
    """Run one episode for a batch of LR images.

    Args:
        look: LR -> patch logits, chances and the classifier to use.
        choose: patch logits -> choice ``(B, P)`` bool.
        read: choice -> packed patches. HR is touched here and nowhere else.
        low: ``(B, C, h, w)`` pixels 0..255.
    """
    scores, chances, classify = look(low)
    choice = choose(scores)
    packed = read(choice)
    return Episode(scores, chances, choice, packed, classify(packed, low))
