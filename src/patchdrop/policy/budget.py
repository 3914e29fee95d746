"""Choose under a budget: pure functions ``(B, P)`` patch logits -> ``(B, P)`` bool, as in `patchdrop.policy.choice`.

The policy was trained to choose patches from a probability of 0.5 on. Its logits also rank them, so a threshold, or a
number of patches, can be set afterwards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ALL, NONE = -1e30, 1e30
"""Thresholds on logits below and above any logit; finite, because JSON knows no infinity."""


def above(logits: Tensor, cut: float = 0.0) -> Tensor:
    """Choose every patch whose logit is at least ``cut``; 0 is the greedy choice."""
    return logits >= cut


def at_most(logits: Tensor, budget: int, cut: float = 0.0) -> Tensor:
    """Choose each image's ``budget`` highest patches among those whose logit is at least ``cut``.

    Choices are nested: what is chosen under a budget is chosen under every larger one. Of equal logits the patch with
    the smaller number comes first.
    """
    rank = logits.argsort(dim=1, descending=True, stable=True).argsort(1)
    return above(logits, cut) & (rank < budget)


def logit_of(threshold: float) -> float:
    """Convert a threshold on probabilities to one on logits: 0.5 is exactly 0, 0 is `ALL`, 1 is `NONE`."""
    if threshold <= 0:
        return ALL
    if threshold >= 1:
        return NONE
    return math.log(threshold / (1 - threshold))


def probability_of(cut: float) -> float:
    """Convert a threshold on logits to one on probabilities, 0 to 1."""
    return float(torch.sigmoid(torch.tensor(cut, dtype=torch.float64)))


def cut_for_mean(logits: Tensor, mean_patches: float) -> float:
    """Find the threshold on logits with which these images use ``mean_patches`` patches on average.

    It lies halfway between two neighbouring logits, so that rounding cannot move a patch across it. The mean is met to
    1 / (2 n), or, where many logits are equal, as nearly as they allow.

    Args:
        logits: ``(n, P)`` float32.
        mean_patches: 0 to P.
    """
    values = logits.flatten().float().sort(descending=True).values
    count = round(mean_patches * len(logits))
    if count > 0:
        border = values[min(count, len(values)) - 1]
        more, fewer = int((values >= border).sum()), int((values > border).sum())
        count = more if more - count <= count - fewer else fewer
    if count <= 0:
        return NONE
    if count >= len(values):
        return ALL
    upper, lower = values[count - 1], values[count]
    middle = (upper + lower) / 2
    return float(middle if middle > lower else upper)
