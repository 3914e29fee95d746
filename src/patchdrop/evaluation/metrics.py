"""Compute figures of merit: pure functions of counts, choices and predictions."""

from __future__ import annotations

import torch
from scipy.stats import binomtest
from torch import Tensor


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson 1927); ``(0, 1)`` for n = 0."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(correct, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def mcnemar(ours: Tensor, theirs: Tensor) -> float:
    """Return p of an exact two-sided McNemar test on the same images: ``(n,)`` bool each, true where right."""
    only_ours = int((ours & ~theirs).sum())
    only_theirs = int((theirs & ~ours).sum())
    discordant = only_ours + only_theirs
    return float(binomtest(only_ours, discordant).pvalue) if discordant else 1.0


def distinct_masks(choice: Tensor) -> int:
    """Count the different rows of ``(n, P)`` bool."""
    return len(torch.unique(choice, dim=0))


def same_mask(choice: Tensor) -> int:
    """Count how often the most common row of ``(n, P)`` bool occurs."""
    return int(torch.unique(choice, dim=0, return_counts=True)[1].max())


def entropy(logits: Tensor) -> float:
    """Return the mean entropy of a patch's decision in nats, 0 to 0.693, from logits ``(n, P)``."""
    p = torch.sigmoid(logits.double())
    terms = -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p))
    return float(terms.mean())


def spread(choice: Tensor) -> dict[str, float]:
    """Return mean and deviation of S over ``(n, P)`` choices, and the number of distinct masks."""
    counts = choice.sum(1).double()
    return {
        "mean_patches": float(counts.mean()),
        "patches_sd": float(counts.std(correction=0)),
        "distinct_masks": float(distinct_masks(choice)),
    }


def parts_of(said: Tensor, came_true: Tensor, bins: int = 10) -> list[tuple[Tensor, Tensor]]:
    """Sort chances and what came true by the chance, and cut them into parts of equal size; none of them is empty.

    Args:
        said: ``(n,)`` chances 0 to 1.
        came_true: ``(n,)`` bool.
        bins: most parts.
    """
    order = said.argsort(stable=True)
    parts = zip(said[order].tensor_split(bins), came_true[order].tensor_split(bins), strict=True)
    return [(chances, came) for chances, came in parts if len(chances)]


def calibration_error(said: Tensor, came_true: Tensor, bins: int = 10) -> float:
    """Return the expected calibration error: the mean distance between chances and how often they came true.

    Takes the arguments of `parts_of`.
    """
    apart = [abs(float((chances.double() - came.double()).sum())) for chances, came in parts_of(said, came_true, bins)]
    return sum(apart) / max(1, len(said))
