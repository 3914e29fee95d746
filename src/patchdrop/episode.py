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


class Episode(NamedTuple):
    """What one batch went through."""

    scores: Tensor
    """Patch logits of the policy, ``(B, P)``."""
    choice: Tensor
    """Patches read, ``(B, P)`` bool."""
    packed: Packed
    """Their pixels."""
    logits: Tensor
    """Class logits, ``(B, K)``."""


class PatchDrop(nn.Module):
    """A policy and the classifier that decides from what the policy read: the model of one stage."""

    def __init__(self, policy: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.policy = policy
        self.classifier = classifier

    def forward(self, low: Tensor, choose: Choose, read: Reader) -> Episode:
        """`play` with this policy and this classifier."""
        return play(self.policy, choose, read, self.classifier, low)


def play(policy: Callable[[Tensor], Tensor], choose: Choose, read: Reader, classify: Classify, low: Tensor) -> Episode:
    """One episode for a batch of LR images.

    Args:
        policy: LR -> patch logits ``(B, P)``.
        choose: patch logits -> choice ``(B, P)`` bool.
        read: choice -> packed patches. HR is touched here and nowhere else.
        classify: packed patches and LR -> class logits ``(B, K)``.
        low: ``(B, C, h, w)`` pixels 0..255.
    """
    scores = policy(low)
    choice = choose(scores)
    packed = read(choice)
    return Episode(scores, choice, packed, classify(packed, low))
